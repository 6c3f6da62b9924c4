//! What can be wrong with the settings of a client.

/// Settings that make no client. No message repeats a URL: it might hold credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A URL that leads nowhere.
    #[error("{name}: {problem}")]
    BadUrl {
        /// The environment variable, or the arm, that it was given for.
        name: String,
        /// What is wrong with it.
        problem: UrlProblem,
    },
    /// An arm id other than lower-case letters, digits and dashes, beginning with a letter.
    #[error("{name}: not an arm id of lower-case letters, digits and dashes")]
    BadArmId {
        /// The environment variable, or the id itself.
        name: String,
    },
    /// Two settings for one arm.
    #[error("{name}: this arm is set already")]
    ArmTwice {
        /// The environment variable, or the arm.
        name: String,
    },
    /// A value that is not UTF-8.
    #[error("{name}: the value is not UTF-8")]
    NotUtf8 {
        /// The environment variable.
        name: String,
    },
    /// A number or a time beyond its range.
    #[error("{field} is out of range: {allowed}")]
    OutOfRange {
        /// The field of the configuration.
        field: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// What is wrong with a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlProblem {
    /// There is none.
    #[error("the URL is empty")]
    Empty,
    /// It cannot be parsed.
    #[error("not a URL such as http://judge-arm:8103")]
    Malformed,
    /// It does not begin with `http://`.
    #[error("the URL has no scheme: write http://host:port")]
    NoScheme,
    /// `https`, which this client does not speak yet.
    #[error("https is not supported yet: put a TLS proxy beside this service, or use http")]
    TlsNotSupported,
    /// Any scheme but `http`.
    #[error("the scheme of the URL is not http")]
    OtherScheme,
    /// Credentials belong into tokens.
    #[error("the URL holds credentials, which would end up in logs: use tokens")]
    Credentials,
    /// `?query` or `#fragment`.
    #[error("the URL has a query or a fragment")]
    Query,
}
