//! Live updates over WebSockets: `GET /ws/tasks/{id}` for one task, and `GET /ws` for many.

mod counted;
mod handshake;
mod line;
mod meter;
mod tasks;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::Method;
use hyper_util::rt::TokioIo;
use octollm_core::{
    Context,
    error::{ConfigError, ErrorKind, Failure},
    id::TaskId,
    orchestrator::Orchestrator,
    parts::Caller,
};

pub(crate) use self::handshake::token_of_protocol;
use self::{handshake::Opening, line::Line, meter::SocketMeter, tasks::Tasks};
use super::{
    Server,
    events::{LiveStreams, authority_ends},
    routes::{Answer, Endpoint, Inbound, Refusal, RouteTable, Takes, within},
    tasks::{cursor, parameters},
};
use crate::limits::ServerConfig;

impl Server {
    /// Allows the pages of an origin, such as `https://dashboard.example`, to open WebSockets. By default those of the same host and port
    /// may. Others are answered 403. A program that is no browser sends no origin, and needs none.
    pub fn allow_origin(mut self, origin: impl Into<String>) -> Self {
        self.origins.push(origin.into());
        self
    }
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    ping: Duration,
    pong: Duration,
    write: Duration,
    subscriptions: usize,
    messages: u32,
}

/// Adds the routes of WebSockets.
///
/// # Errors
/// One of the origins is none.
pub(crate) fn add_sockets(
    table: &mut RouteTable,
    orchestrator: &Arc<dyn Orchestrator>,
    live: &LiveStreams,
    origins: Vec<String>,
    config: &ServerConfig,
) -> Result<(), ConfigError> {
    let origins = handshake::origins(origins)?;
    let limits = Limits {
        ping: live.ping,
        pong: config.pong_timeout,
        write: config.write_timeout,
        subscriptions: config.max_subscriptions,
        messages: config.max_socket_messages,
    };
    let meter = SocketMeter::new(&table.server.server);
    for (path, is_single) in [("/ws", false), ("/ws/tasks/{id}", true)] {
        let (orchestrator, live, origins) = (orchestrator.clone(), live.clone(), origins.clone());
        let meter = meter.clone();
        table.add(Method::GET, path, Sockets { orchestrator, live, origins, limits, meter, is_single })?;
    }
    Ok(())
}

/// A route of WebSockets.
struct Sockets {
    orchestrator: Arc<dyn Orchestrator>,
    live: LiveStreams,
    /// Other origins whose pages may open one.
    origins: Arc<[String]>,
    limits: Limits,
    meter: Arc<SocketMeter>,
    /// It follows the task in the path.
    is_single: bool,
}

#[async_trait]
impl Endpoint for Sockets {
    fn takes(&self) -> Takes {
        Takes::Socket
    }

    fn is_json(&self) -> bool {
        false
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let opening = Opening::of(inbound.head, &self.origins)?;
        let Inbound { parts, head, id, place, .. } = inbound;
        let (deadline, cx) = (parts.deadline, Context::from_parts(parts, Arc::new(())));
        let query = head.uri.query().unwrap_or_default();
        let mut tasks = Tasks::new(self.orchestrator.clone(), cx.clone(), self.limits.subscriptions);
        if self.is_single {
            let id: TaskId = id.parse().map_err(|_| Failure::of(ErrorKind::TaskNotFound))?;
            let after = cursor(query)?;
            let updates = within(deadline, self.orchestrator.watch(&id, after, &cx)).await;
            tasks.follow_only(id.clone(), updates.map_err(|failure| Refusal::from(failure).task(id))?);
        } else {
            parameters(query, |_, _| None)?;
            if *cx.caller() == Caller::Anonymous {
                return Err(Failure::of(ErrorKind::Unauthenticated).before_execution().into());
            }
        }
        let (limits, end, until) = (self.limits, self.live.end.clone(), authority_ends(&cx));
        let meter = self.meter.clone();
        let (answer, upgrade) = opening.accept();
        tokio::spawn(async move {
            // Until the connection has ended.
            let _place = place;
            match upgrade.await {
                Ok(io) => {
                    let line = Line::new(TokioIo::new(io), tasks, limits).await;
                    line.run(meter.opened(), end, until).await;
                }
                Err(error) => tracing::debug!(%error, "the connection was lost before it was a WebSocket"),
            }
        });
        Ok(answer)
    }
}
