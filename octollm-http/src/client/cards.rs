//! Asking one endpoint of an arm for its card.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Method, StatusCode};
use octollm_core::{
    card::ArmCard,
    deadline::Deadline,
    error::{ErrorKind, Failure},
    json::read_output,
    parts::ContextParts,
};
use tokio::time::Instant;

use super::{
    exchange::{Exchanger, Target},
    foreign,
    pool::{ExchangeLimits, ServerHints},
    site::Site,
};

/// The largest card, in bytes. As values its schemas take up to a hundred times as much memory.
const MAX_CARD: usize = 1 << 20;

/// Asks an endpoint for its card, within a time limit. A failure is logged.
pub(super) async fn ask(exchanger: &Exchanger, limit: Duration, site: &Site) -> Result<ArmCard, Failure> {
    let late = || Err(Failure::new(ErrorKind::Unreachable, format!("no answer within {limit:?}")));
    let deadline = Deadline::after(limit);
    let answer = deadline.run(send(exchanger, deadline, limit, site)).await.unwrap_or_else(late);
    if let Err(trouble) = &answer {
        tracing::warn!(arm = %site.arm, endpoint = ?site.url, %trouble, "the arm did not return its card");
    }
    answer
}

async fn send(
    exchanger: &Exchanger,
    deadline: Deadline,
    work: Duration,
    site: &Site,
) -> Result<ArmCard, Failure> {
    let no_uri = || Failure::new(ErrorKind::BadRequest, "no such URL").before_execution();
    let uri = site.url.uri("/capabilities").ok_or_else(no_uri)?;
    let mut parts = ContextParts::new();
    parts.deadline = Some(deadline);
    let request = site.url.request((Method::GET, uri), None, &parts, (true, Instant::now()));
    let hints = ServerHints { address: site.url.address(), ..ServerHints::default() };
    let limits = ExchangeLimits { deadline: parts.deadline, work, hints, begun: None };
    let target = || Target {
        arm: Arc::clone(&site.arm),
        endpoint: site.url.shared(),
        contract: None,
        idempotent: true,
        deadline: parts.deadline,
        work,
    };
    let answer = exchanger.send(request, &site.arm, limits, target).await?;
    if answer.status() != StatusCode::OK {
        let status = answer.status();
        let mut failure = foreign::failure(status, answer.headers(), answer.body(), SystemTime::now());
        failure.message = format!("answered {}", status.as_u16());
        return Err(failure);
    }
    if answer.body().len() > MAX_CARD {
        return Err(Failure::new(ErrorKind::BadResponse, "its card is larger than 1 MiB"));
    }
    let no_card = |_| Failure::new(ErrorKind::BadResponse, "its answer is no card of an arm");
    read_output(answer.body()).map_err(no_card)
}
