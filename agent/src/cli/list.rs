//! `services`, `nodes`, `members`: what the agent knows, as tables or JSON.

use serde_json::Value;

use super::{
    ApiArgs, Failure, Outcome,
    client::{Answer, Api},
    say, table,
};

pub(super) fn services(name: Option<&str>, args: &ApiArgs) -> Outcome {
    let api = Api::new(args)?;
    match name {
        Some(name) => {
            let answer = api.get(&format!("/v1/health/service/{name}?stale"))?;
            print(args, &answer, "no instance of it is registered", &INSTANCE_HEAD, instance_rows(&answer.body))
        }
        None => {
            let answer = api.get("/v1/catalog/services?stale")?;
            // With the registry out of reach an agent knows the instances of the services it holds only.
            let counts = api.get("/v1/muster/services?stale");
            if let Err(Failure::Usage(why) | Failure::Failed(why)) = &counts {
                super::complain(&format!("how the instances are is not known here now: {why}"));
            }
            let rows = service_rows(&answer.body, counts.ok().map(|counts| counts.body).as_ref());
            print(args, &answer, "no service is registered", &["SERVICE", "INSTANCES", "TAGS"], rows)
        }
    }
}

pub(super) fn nodes(args: &ApiArgs) -> Outcome {
    let api = Api::new(args)?;
    let answer = api.get("/v1/catalog/nodes?stale")?;
    let members = api.get("/v1/agent/members")?;
    let rows = list(&answer.body).iter().map(|node| {
        let name = text(node, "Node");
        let agents = list(&members.body).iter().filter(|member| member["Tags"]["role"] == "node");
        let liveness = agents
            .into_iter()
            .find(|agent| text(agent, "Name") == name)
            .map_or("no agent", |agent| if agent["Status"] == 1 { "passing" } else { "critical" });
        let liveness = liveness.to_owned();
        vec![name, text(node, "Address"), liveness]
    });
    print(args, &answer, "no node is registered", &["NODE", "ADDRESS", "AGENT"], rows.collect())
}

pub(super) fn members(args: &ApiArgs) -> Outcome {
    let answer = Api::new(args)?.get("/v1/muster/members")?;
    let rows = list(&answer.body).iter().map(|member| {
        let answers = if member["Alive"] == true { "yes" } else { "no" };
        vec![text(member, "Name"), text(member, "Address"), text(member, "Role"), answers.to_owned()]
    });
    print(
        args,
        &answer,
        "no member of the registry is known",
        &["MEMBER", "ADDRESS", "ROLE", "ANSWERS"],
        rows.collect(),
    )
}

/// The head of a list of instances.
pub(super) const INSTANCE_HEAD: [&str; 6] = ["ID", "NODE", "ADDRESS", "STATUS", "TAGS", "OUTPUT"];

/// A row for each entry of a `health/service` answer.
pub(super) fn instance_rows(body: &Value) -> Vec<Vec<String>> {
    list(body)
        .iter()
        .map(|entry| {
            let (node, service) = (&entry["Node"], &entry["Service"]);
            let own = text(service, "Address");
            let address = if own.is_empty() { text(node, "Address") } else { own };
            let worst = list(&entry["Checks"]).iter().max_by_key(|check| severity(check));
            let (status, output) = match worst {
                None => ("passing".into(), String::new()),
                // Who took it out said why.
                Some(check) if is_maintenance(check) => ("maintenance".into(), first_line(&text(check, "Notes"))),
                Some(check) => match text(check, "Status") {
                    passing if passing == "passing" => (passing, String::new()),
                    status => (status, first_line(&text(check, "Output"))),
                },
            };
            vec![
                text(service, "ID"),
                text(node, "Node"),
                format!("{address}:{}", service["Port"].as_u64().unwrap_or(0)),
                status,
                tags(&service["Tags"]),
                output,
            ]
        })
        .collect()
}

/// The states that an instance may be in, those that are sent traffic first.
const STATES: [(&str, &str); 5] = [
    ("Passing", "passing"),
    ("Warning", "warning"),
    ("Critical", "critical"),
    ("Maintenance", "in maintenance"),
    ("Draining", "draining"),
];

fn service_rows(services: &Value, counts: Option<&Value>) -> Vec<Vec<String>> {
    let shown = |name: &str| {
        let Some(counts) = counts else { return "unknown".to_owned() };
        let count = |(key, word): &(&str, &str)| {
            let count = counts[name][*key].as_u64().filter(|count| *count > 0)?;
            Some(format!("{count} {word}"))
        };
        let each: Vec<String> = STATES.iter().filter_map(count).collect();
        if each.is_empty() { "none".to_owned() } else { each.join(", ") }
    };
    let services = services.as_object().into_iter().flatten();
    services.map(|(name, of)| vec![name.clone(), shown(name), tags(of)]).collect()
}

fn print(args: &ApiArgs, answer: &Answer, nothing: &str, head: &[&str], rows: Vec<Vec<String>>) -> Outcome {
    if args.json {
        return say(&answer.body.to_string());
    }
    if let Some(age) = answer.stale_ms {
        super::complain(&format!("the registry is out of reach: this is what was known {}s ago", age / 1_000));
    }
    if rows.is_empty() { say(nothing) } else { say(&table::render(head, rows)) }
}

fn severity(check: &Value) -> u8 {
    match &*text(check, "Status") {
        _ if is_maintenance(check) => 3,
        "passing" => 0,
        "warning" => 1,
        _ => 2,
    }
}

fn is_maintenance(check: &Value) -> bool {
    check["Type"] == "maintenance"
}

fn first_line(output: &str) -> String {
    output.lines().next().unwrap_or_default().chars().take(60).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn tags(value: &Value) -> String {
    list(value).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_out_of_service_says_why() {
        let check = |status: &str, kind: &str, notes: &str, output: &str| json!({"Status": status, "Type": kind, "Notes": notes, "Output": output});
        let shown = |checks: &[Value]| {
            let rows = instance_rows(&json!([{"Node": {}, "Service": {}, "Checks": checks}]));
            (rows[0][3].clone(), rows[0][5].clone())
        };
        let (passing, critical) =
            (check("passing", "http", "n", "fine"), check("critical", "http", "n", "refused\nmore"));
        let maintenance = check("critical", "maintenance", "disk swap", "");
        assert_eq!(shown(&[]), ("passing".into(), String::new()));
        assert_eq!(shown(std::slice::from_ref(&passing)), ("passing".into(), String::new()));
        assert_eq!(shown(&[passing.clone(), critical.clone()]), ("critical".into(), "refused".into()));
        assert_eq!(shown(&[critical, maintenance, passing]), ("maintenance".into(), "disk swap".into()));
    }

    #[test]
    fn services_are_shown_by_their_instances() {
        let services = json!({"db": [], "web": ["v1", "v2"], "none": []});
        let counts = json!({"db": {"Passing": 0, "Maintenance": 1}, "web": {"Passing": 2, "Critical": 1}});
        let rows = service_rows(&services, Some(&counts));
        assert_eq!(rows[0], ["db", "1 in maintenance", ""]);
        assert_eq!(rows[1], ["none", "none", ""]);
        assert_eq!(rows[2], ["web", "2 passing, 1 critical", "v1,v2"]);
        assert_eq!(service_rows(&services, None)[0][1], "unknown");
    }
}
