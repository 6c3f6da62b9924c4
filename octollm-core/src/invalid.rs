//! The errors of values and of settings.

use std::{borrow::Cow, error::Error, fmt, sync::Arc};

/// The error of a text or value that is not valid for its type, such as an id, a budget, or the name of a contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}{}{reason}", if reason.is_empty() { "" } else { ": " })]
pub struct InvalidValue {
    kind: &'static str,
    reason: Cow<'static, str>,
}

impl InvalidValue {
    /// An error for a value of this kind, as in "not a valid task id".
    pub const fn new(kind: &'static str) -> Self {
        Self { kind, reason: Cow::Borrowed("") }
    }

    /// Sets the rule that the value breaks.
    #[must_use]
    pub fn because(mut self, reason: impl Into<Cow<'static, str>>) -> Self {
        self.reason = reason.into();
        self
    }

    /// The kind of value that was expected, such as `task id`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

/// The error of a setting: a limit out of range, an invalid URL, a contract that cannot be served.
#[derive(Debug, Clone)]
pub struct ConfigError {
    setting: Cow<'static, str>,
    reason: Cow<'static, str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ConfigError {
    /// An error for this setting: the name of a method, of an environment variable, or of what was configured.
    pub fn new(setting: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { setting: setting.into(), reason: reason.into(), source: None }
    }

    /// Sets the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The same error under another name of its setting, such as that of the variable which had the value.
    #[must_use]
    pub fn for_setting(self, setting: impl Into<Cow<'static, str>>) -> Self {
        Self { setting: setting.into(), ..self }
    }

    /// The setting: the name of a method, of an environment variable, or of what was configured.
    pub fn setting(&self) -> &str {
        &self.setting
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.setting, self.reason)
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
