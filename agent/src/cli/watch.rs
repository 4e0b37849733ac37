//! `watch`: follows a service by blocking reads.

use std::time::Duration;

use super::{ApiArgs, Outcome, client::Api, list, say, table};

/// How long one read waits for a change before it is asked again.
const WAIT: Duration = Duration::from_secs(300);

pub(super) fn watch(name: &str, count: Option<u64>, args: &ApiArgs) -> Outcome {
    let api = Api::new(args)?;
    let path = format!("/v1/health/service/{name}?stale");
    let (mut index, mut seen, mut shown) = (0, None, 0);
    while count.is_none_or(|count| shown < count) {
        let answer = api.get_after(&path, index, WAIT)?;
        // An index that runs backwards belongs to a restored registry: begin anew.
        index = if answer.index < index { 0 } else { answer.index };
        if seen.as_ref() == Some(&answer.body) {
            continue;
        }
        if args.json {
            say(&answer.body.to_string())?;
        } else {
            let rows = list::instance_rows(&answer.body);
            say(&format!("-- {name} at index {index}: {} instances", rows.len()))?;
            if !rows.is_empty() {
                say(&table::render(&list::INSTANCE_HEAD, rows))?;
            }
        }
        seen = Some(answer.body);
        shown += 1;
    }
    Ok(())
}
