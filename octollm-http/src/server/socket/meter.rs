//! The metrics of WebSockets: those that are open, and how they end.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicI64, Ordering},
};

use octollm_core::__private::{Counters, Gauges};

static CLOSES: LazyLock<Counters> = LazyLock::new(|| {
    let help = "WebSockets that have ended, by the code of the close frame that the server has sent first; client where the client was first, lost where the connection was lost.";
    Counters::new("octollm_websocket_closes_total", help, &["server", "code"])
});
static GAUGES: LazyLock<Gauges<SocketMeter>> = LazyLock::new(|| {
    let open = ("octollm_websockets", "WebSockets that are open now.", &["server"][..]);
    Gauges::new(&[open], |meter, gauges| {
        for gauge in gauges {
            gauge.with_label_values(&[&*meter.server]).add(meter.open.load(Ordering::Relaxed));
        }
    })
});

/// The metrics of the WebSockets of one server.
pub(super) struct SocketMeter {
    server: String,
    open: AtomicI64,
}

impl SocketMeter {
    pub(super) fn new(server: &str) -> Arc<Self> {
        let meter = Arc::new(Self { server: server.to_owned(), open: AtomicI64::new(0) });
        GAUGES.add(&meter);
        meter
    }

    /// Counts a WebSocket as open until it is dropped.
    pub(super) fn opened(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }
}

/// A WebSocket that is open.
pub(super) struct Open(Arc<SocketMeter>);

impl Open {
    /// Counts its end. The code is one of those that the server sends: what the other end sends is no label.
    pub(super) fn ended(self, code: &str) {
        CLOSES.with(&[&self.0.server, code]).count();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
