//! `brakes`: what is held back, why, and an operator's decision about it.

use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use super::{ApiArgs, Outcome, client::Api, say, table};

/// Nodes or services that are listed for people; `--json` has more.
const MAX_LISTED: usize = 20;

/// What an operator decides.
#[derive(Debug, Subcommand)]
pub(crate) enum BrakeCommand {
    /// Let what is held happen now: the nodes are lost, the services are deregistered.
    #[command(
        after_help = "Example:\n  muster brakes commit expiry-7-1\n\nIt is about what `muster brakes` showed under this id; when that is over it does nothing and says so."
    )]
    Commit {
        /// The id that `muster brakes` shows.
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// It is a mistake: give silent nodes a full lease, or removed services their whole time, anew.
    #[command(
        after_help = "Example:\n  muster brakes release expiry-7-1\n\nIt is about what `muster brakes` showed under this id; when that is over it does nothing and says so."
    )]
    Release {
        /// The id that `muster brakes` shows.
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

pub(super) fn brakes(decision: Option<&BrakeCommand>, args: &ApiArgs) -> Outcome {
    match decision {
        None => list(args),
        Some(BrakeCommand::Commit { id, api }) => decide("commit", id, api),
        Some(BrakeCommand::Release { id, api }) => decide("release", id, api),
    }
}

fn decide(decision: &str, id: &str, args: &ApiArgs) -> Outcome {
    let body = Api::new(args)?.put_for_answer(&format!("/v1/muster/brakes/{decision}/{id}"))?;
    if args.json {
        return say(&body.to_string());
    }
    let (done, count) = (if decision == "commit" { "committed" } else { "released" }, body["Count"].as_u64());
    say(&format!("{done} {id}: it held {}", count.unwrap_or(0)))
}

fn list(args: &ApiArgs) -> Outcome {
    let answer = Api::new(args)?.get("/v1/muster/brakes")?;
    if args.json {
        return say(&answer.body.to_string());
    }
    if let Some(problem) = answer.body["Problem"].as_str() {
        super::complain(&format!("the registry cannot be asked, so only this agent's own brake is shown: {problem}"));
    }
    let held = answer.body["Held"].as_array().map_or(&[][..], Vec::as_slice);
    if held.is_empty() {
        return say("nothing is held back");
    }
    held.iter().try_for_each(|brake| say(&describe(brake)))
}

/// One event, with what to do about it.
fn describe(brake: &Value) -> String {
    let text = |key: &str| brake[key].as_str().unwrap_or_default();
    let seconds = |key: &str| humantime::format_duration(Duration::from_secs(brake[key].as_u64().unwrap_or(0) / 1000));
    let (id, count) = (text("ID"), brake["Count"].as_u64().unwrap_or(0));
    let mut lines = vec![
        format!("{id}: {}, held for {}, {} left", text("Kind"), seconds("HeldForMs"), seconds("RemainingMs")),
        format!("  why: {}", text("Reason")),
    ];
    let shared = brake["Shared"].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(shared.map(|one| format!("  in common: {one}")));
    let items = brake["Items"].as_array().map_or(&[][..], Vec::as_slice);
    let rows = items.iter().take(MAX_LISTED).map(|item| {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        vec![text("Name"), text("Detail")]
    });
    lines.push(table::render(&["HELD", "DETAIL"], rows.collect()));
    if count > MAX_LISTED as u64 {
        lines.push(format!(" … and {} more: see --json", count - MAX_LISTED as u64));
    }
    lines.push(format!("  muster brakes commit {id}   {}", text("OnCommit")));
    lines.push(format!("  muster brakes release {id}  {}", text("OnRelease")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_says_what_why_and_what_to_type() {
        let items: Vec<Value> =
            (0..25).map(|n| json!({"Name": format!("node-{n}"), "Detail": "last heard by r2"})).collect();
        let text = describe(&json!({
            "ID": "expiry-7-1", "Kind": "mass-expiry", "Reason": "25 of 40 nodes went silent",
            "Shared": ["zone a (25 of these 25, 0 of the other 15)"], "Count": 25, "Items": items,
            "HeldForMs": 12_300, "RemainingMs": 17_700, "OnCommit": "they are lost", "OnRelease": "they live",
        }));
        for part in [
            "expiry-7-1: mass-expiry, held for 12s, 17s left",
            "in common: zone a",
            "node-19",
            "and 5 more",
            "muster brakes release expiry-7-1  they live",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert!(!text.contains("node-20"), "{text}");
    }
}
