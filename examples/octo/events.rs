//! The events of the bus.

use futures_util::StreamExt;
use octollm::{error::CallError, event::Pattern, task::Timestamp};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Octo,
    exit::Exit,
    print::line,
    tasks::{BETWEEN, PATIENCE},
};

impl Octo {
    /// Prints events as they are published. A connection that is lost opens again.
    pub(crate) async fn events(&self, pattern: &Pattern, count: Option<usize>) -> Result<(), Exit> {
        let mut left = count.unwrap_or(usize::MAX);
        let client = self.rest()?;
        let query = [("pattern", pattern.to_string())];
        let mut lost: Option<Instant> = None;
        while left > 0 {
            let error: Option<CallError> = match client.get("events").query(&query).events().await {
                Err(error) => Some(error),
                Ok(mut events) => {
                    if lost.take().is_some() {
                        self.print_gap(&json!({ "type": "gap", "reason": "the connection was lost" }));
                    }
                    loop {
                        match events.next().await {
                            Some(Ok(event)) => left -= usize::from(self.print_event(&event.data)?),
                            Some(Err(error)) => break Some(error),
                            None => break None,
                        }
                        if left == 0 {
                            return Ok(());
                        }
                    }
                }
            };
            let since = *lost.get_or_insert_with(Instant::now);
            if let Some(error) = error
                && (!error.retryable() || since.elapsed() >= PATIENCE)
            {
                return Err(error.into());
            }
            sleep(BETWEEN).await;
        }
        Ok(())
    }

    /// Prints an event, and returns whether it is one: a gap is not counted.
    fn print_event(&self, data: &str) -> Result<bool, Exit> {
        let event: Value = serde_json::from_str(data)
            .map_err(|error| Exit::unreadable(format!("an event is not JSON: {error}")))?;
        if event.get("type").is_some_and(|kind| kind == "gap") {
            self.print_gap(&event);
            return Ok(false);
        }
        if self.print.is_json {
            self.print.json(&event);
            return Ok(true);
        }
        let member = |name: &str| line(event.get(name).and_then(Value::as_str).unwrap_or("-"));
        let data = line(&event.get("data").unwrap_or(&Value::Null).to_string());
        let kind = self.print.colored(&format!("{:<18}", member("event_type")), "36");
        let time = member("timestamp");
        let time = time.parse::<Timestamp>().map_or(time, |time| format!("{time:.3}"));
        self.print.out(&format!("{time}  {kind} {:<14} {data}\n", member("source")));
        Ok(true)
    }

    fn print_gap(&self, gap: &Value) {
        if self.print.is_json {
            return self.print.json(gap);
        }
        let reason = match (gap.get("missed"), gap.get("reason").and_then(Value::as_str)) {
            (Some(missed), _) => format!("{missed} events are missing here: too slow"),
            (None, reason) => format!("events may be missing here: {}", reason.unwrap_or("not known")),
        };
        self.print.out(&format!("-- {}\n", line(&reason)));
    }
}
