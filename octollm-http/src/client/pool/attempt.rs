//! The attempts of one exchange: on which connections, and when it begins again.

use std::{future::poll_fn, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use octollm_core::error::ErrorKind;
use tokio::task::coop::consume_budget;

use super::{
    ExchangeError, ExchangeLimits, Origin, Shared,
    checkout::{Answer, Place},
    connection::{SendError, too_large},
    meter::WaitLimit,
    upload::{Upload, repeated},
};
use crate::wire::BodyBuffer;

/// An exchange, which begins again where that is safe.
pub(super) struct Attempt<'a> {
    pool: &'a Arc<Shared>,
    arm: &'a Arc<str>,
    origin: Origin,
    limits: ExchangeLimits,
    pub(super) place: Place,
    /// `None` once it is sent.
    request: Option<Box<Request<Upload>>>,
    /// The same request, where it may be sent again.
    spare: Option<Box<Request<Upload>>>,
    /// Whether the method allows that the request runs twice.
    is_idempotent: bool,
    used_before: bool,
    /// Whether it was sent again after a loss on a connection that was used before.
    is_repeated: bool,
    refusals: u32,
}

/// Connections on which a request is begun that servers have not processed.
const MOST_REFUSALS: u32 = 3;

impl<'a> Attempt<'a> {
    pub(super) async fn begin(
        pool: &'a Arc<Shared>,
        arm: &'a Arc<str>,
        origin: Origin,
        limits: ExchangeLimits,
        request: Box<Request<Upload>>,
    ) -> Result<Self, ExchangeError> {
        let place = Place::new(pool, arm, &origin, &limits).await?;
        let is_idempotent = request.method().is_idempotent();
        let (request, spare) = (Some(request), None);
        Ok(Self {
            pool,
            arm,
            origin,
            limits,
            place,
            request,
            spare,
            is_idempotent,
            used_before: false,
            is_repeated: false,
            refusals: 0,
        })
    }

    /// Sends the request and reads the head of its answer.
    pub(super) async fn head(
        &mut self,
        is_sending: &mut bool,
    ) -> Result<(Response<Answer>, WaitLimit), SendError> {
        self.used_before = self.place.ready(&self.origin).await.map_err(SendError::Failed)?;
        let request = self.request.take().ok_or_else(sent_already)?;
        if self.is_idempotent || matches!(self.place, Place::Stream(_)) {
            self.spare = repeated(&request);
        }
        *is_sending = true;
        let config = &self.pool.config;
        let mut wait_limit = WaitLimit::new(config.read_idle, config.write_idle, self.limits);
        let has_token = self.limits.hints.has_issued_token;
        let head = match self.place.head(request, &self.origin, has_token, &mut wait_limit).await {
            Err(SendError::TokenMoved) => {
                let request = self.spare.as_deref().and_then(repeated).ok_or_else(sent_already)?;
                self.place.head(request, &self.origin, false, &mut wait_limit).await?
            }
            head => head?,
        };
        wait_limit.answering();
        Ok((head, wait_limit))
    }

    /// Prepares another attempt after one that failed.
    ///
    /// # Errors
    /// The request may not be sent again.
    pub(super) async fn again(
        &mut self,
        failed: SendError,
        is_sending: &mut bool,
    ) -> Result<(), ExchangeError> {
        let spare = self.spare.take();
        let is_stream = matches!(self.place, Place::Stream(_));
        match failed {
            SendError::Unsent(unsent) if self.used_before || is_stream => {
                self.count_refusal(closed_at_once())?;
                *is_sending = false;
                self.request = Some(unsent);
                self.place.replace();
            }
            SendError::Unsent(_) => return Err(closed_at_once()),
            SendError::Refused(error) => {
                self.count_refusal(error)?;
                *is_sending = false;
                self.request = Some(spare.ok_or_else(closed_at_once)?);
            }
            SendError::TokenMoved => return Err(closed_at_once()),
            SendError::Failed(error) => match spare.filter(|_| self.may_repeat(&error)) {
                Some(spare) => {
                    self.is_repeated = true;
                    self.request = Some(spare);
                    // Where one was stale, others may be.
                    self.place.reopen();
                }
                None => {
                    if error.failure.kind == ErrorKind::Timeout && self.place.is_silent() {
                        self.place.retire();
                    }
                    return Err(error);
                }
            },
        }
        if is_stream {
            // Left before the wait for another one: where connections are few, each would wait for one that another holds.
            self.place.leave();
            self.place = Place::new(self.pool, self.arm, &self.origin, &self.limits).await?;
        }
        Ok(())
    }

    /// Whether the request may run twice and failed because its connection was stale, for the first time.
    fn may_repeat(&self, error: &ExchangeError) -> bool {
        self.is_idempotent
            && self.used_before
            && !self.is_repeated
            && error.failure.kind == ErrorKind::ConnectionLost
    }

    /// # Errors
    /// That of the last one, if there were too many on connections that were new.
    fn count_refusal(&mut self, error: ExchangeError) -> Result<(), ExchangeError> {
        let is_fresh = matches!(self.place, Place::Stream(_));
        self.refusals += u32::from(is_fresh);
        if self.refusals >= MOST_REFUSALS { Err(error) } else { Ok(()) }
    }
}

/// Reads a body to its end.
pub(super) async fn whole(
    place: &mut Place,
    head: &HeaderMap,
    body: &mut Answer,
    max: usize,
    wait_limit: &mut WaitLimit,
) -> Result<Bytes, ExchangeError> {
    if body.least(head) > max as u64 {
        return Err(too_large(max));
    }
    let mut whole = BodyBuffer::default();
    while !body.is_end_stream() {
        let frame = poll_fn(|cx| place.poll_frame(body, wait_limit, cx)).await;
        let Some(frame) = frame else { break };
        // Many small pieces must not hold back the deadline.
        consume_budget().await;
        if let Ok(data) = frame?.into_data() {
            if whole.len() + data.len() > max {
                return Err(too_large(max));
            }
            whole.push(data);
        }
    }
    Ok(whole.into_bytes())
}

fn sent_already() -> SendError {
    SendError::Failed(ExchangeError::new(ErrorKind::Internal, "the request was sent already"))
}

fn closed_at_once() -> ExchangeError {
    ExchangeError::new(ErrorKind::ConnectionLost, "the connection was closed at once").before_execution()
}
