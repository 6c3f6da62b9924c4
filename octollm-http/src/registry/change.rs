//! The changes of arms, as they are logged and published.

use serde_json::{Value, json};

/// A change of an arm, to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) arm: String,
    pub(crate) endpoint: String,
    pub(crate) instance: Option<String>,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A process has registered.
    Registered,
    /// The last one of the arm that accepted work is gone.
    Unavailable(Gone),
    /// One accepts work again.
    Recovered,
}

/// Why no process of an arm accepts work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It was not renewed.
    Expired,
    /// It has said so.
    Left,
    /// Its card says so.
    Reported,
    /// An administrator has cleared the arm.
    Cleared,
}

impl Change {
    pub(crate) fn event_type(&self) -> &'static str {
        match self.kind {
            Kind::Registered => "arm.registered",
            Kind::Unavailable(_) => "arm.unavailable",
            Kind::Recovered => "arm.recovered",
        }
    }

    pub(crate) fn data(&self) -> Value {
        let Self { arm, endpoint, instance, kind } = self;
        let mut data = json!({ "arm_id": arm, "endpoint": endpoint, "instance": instance });
        if let Kind::Unavailable(gone) = kind {
            data["reason"] = gone.word().into();
        }
        data
    }

    pub(crate) fn log(&self, server: &str) {
        let Self { arm, endpoint, instance, kind } = self;
        match kind {
            Kind::Registered => tracing::info!(server, arm, endpoint, instance, "arm registered"),
            Kind::Unavailable(gone) => {
                tracing::warn!(server, arm, endpoint, instance, reason = gone.word(), "arm unavailable");
            }
            Kind::Recovered => tracing::info!(server, arm, endpoint, instance, "arm recovered"),
        }
    }
}

impl Gone {
    fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Left => "left",
            Self::Reported => "reported",
            Self::Cleared => "cleared",
        }
    }
}
