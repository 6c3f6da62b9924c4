//! Clients as their environment configures them.

use octollm_core::{
    __private::settings::{Vars, flag, text},
    error::ConfigError,
    id::is_arm_id,
};

use super::{authority::Authority, exchange::Requests, pool::Protocol};

pub(super) const PREFIX: &str = "OCTOLLM_CLIENT_";
/// The variables beside those of the limits.
const NAMES: [&str; 7] = [
    "ORCHESTRATOR_URL",
    "ORCHESTRATOR_AUDIENCE",
    "CLEARTEXT",
    "TOKEN_ISSUER",
    "TOKEN_ARM",
    "TOKEN_KEY_FILE",
    "PROTOCOL",
];
/// The variable that has the URL of the orchestrator.
pub(crate) const ORCHESTRATOR_URL: &str = "OCTOLLM_CLIENT_ORCHESTRATOR_URL";

/// An orchestrator, as far as the environment has it.
pub(super) struct Named {
    pub(super) url: Option<String>,
    /// Audience of its tokens.
    pub(super) audience: Option<String>,
}

/// Takes the variables of a client.
///
/// # Errors
/// A variable is unknown, or its value cannot be read or is out of range.
pub(super) fn take(
    mut vars: Vars,
    requests: &mut Requests,
    authority: &mut Authority,
) -> Result<Named, ConfigError> {
    requests.config.take(&mut vars)?;
    let [url, audience, cleartext, issuer, arm, key, version] = NAMES;
    let orchestrator = Named { url: vars.take(url, text)?, audience: vars.take(audience, text)? };
    if let Some(cleartext) = vars.take(cleartext, flag)? {
        authority.cleartext = cleartext;
    }
    if let Some(version) = vars.take(version, protocol)? {
        requests.protocol = version;
    }
    let root = vars.take(issuer, text)?;
    let arm = vars.take(arm, arm_id)?;
    let key_file = vars.take(key, text)?;
    if let Some(file) = key_file {
        set_issuer(&vars.full(key), &file, root, arm, authority)?;
    } else if root.is_some() || arm.is_some() {
        return Err(ConfigError::new(vars.full(key), "is not set, and tokens need it"));
    }
    vars.finish()?;
    Ok(orchestrator)
}

#[cfg(feature = "tokens")]
fn set_issuer(
    name: &str,
    file: &str,
    root: Option<String>,
    arm: Option<String>,
    authority: &mut Authority,
) -> Result<(), ConfigError> {
    use crate::token::{SigningKey, TokenIssuer};

    let failed = |problem| ConfigError::new(name.to_owned(), problem);
    let pem = std::fs::read_to_string(file)
        .map_err(|source| failed("names a file that cannot be read").with_source(source))?;
    let key = SigningKey::from_pem(&pem.into())
        .map_err(|source| failed("names a file without a private key").with_source(source))?;
    let issuer = match (root, arm) {
        (Some(root), None) => TokenIssuer::root(root, key),
        (None, Some(arm)) => TokenIssuer::arm(arm, key),
        _ => {
            return Err(failed(
                "needs OCTOLLM_CLIENT_TOKEN_ISSUER or OCTOLLM_CLIENT_TOKEN_ARM, and not both",
            ));
        }
    };
    authority.issuer = Some(issuer.build().map_err(|error| error.for_setting(name.to_owned()))?);
    Ok(())
}

#[cfg(not(feature = "tokens"))]
fn set_issuer(
    name: &str,
    _: &str,
    _: Option<String>,
    _: Option<String>,
    _: &mut Authority,
) -> Result<(), ConfigError> {
    Err(ConfigError::new(name.to_owned(), "needs the feature `tokens` of octollm"))
}

fn protocol(text: &str) -> Result<Protocol, &'static str> {
    match text {
        "auto" => Ok(Protocol::Auto),
        "http1" => Ok(Protocol::Http1),
        "http2" => Ok(Protocol::Http2),
        _ => Err("is not `auto`, `http1` or `http2`"),
    }
}

fn arm_id(text: &str) -> Result<String, &'static str> {
    if is_arm_id(text) {
        Ok(text.to_owned())
    } else {
        Err("is not an arm id of lower-case letters, digits and dashes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client::Arms, limits::ClientConfig};

    #[test]
    fn the_table_for_operators_has_each_variable_with_its_default_and_no_other() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let document = std::fs::read_to_string(file).unwrap();
        assert_eq!(ClientConfig::undocumented(PREFIX, &document), [""; 0]);
        for name in NAMES {
            assert!(document.contains(&format!("| `{PREFIX}{name}` | ")), "{name}");
        }
        let named = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        for name in named.filter(|name| name.starts_with(PREFIX)) {
            let error = Arms::from_vars([(name, "\u{1}")]).err().map(|error| error.to_string());
            assert!(error.is_none_or(|error| !error.contains("is no setting")), "{name}");
        }
    }
}
