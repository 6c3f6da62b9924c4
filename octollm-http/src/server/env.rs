//! A server as its environment configures it.

use std::path::PathBuf;

use octollm_core::{
    __private::settings::{Vars, flag, text},
    error::ConfigError,
};

use super::Server;
use crate::io::TlsFiles;

pub(crate) const PREFIX: &str = "OCTOLLM_SERVER_";
// The variables beside those of the limits.
const ADDRESS: &str = "LISTEN";
const OPEN_TO_ALL: &str = "OPEN_TO_ALL";
const CERTIFICATE: &str = "TLS_CERT_FILE";
const KEY: &str = "TLS_KEY_FILE";
const CLIENT_CA: &str = "TLS_CLIENT_CA_FILE";
const ISSUER: &str = "TOKEN_ISSUER";
const KEYS_FILE: &str = "TOKEN_KEYS_FILE";
const KEYS_URL: &str = "TOKEN_KEYS_URL";
const AUDIENCE: &str = "TOKEN_AUDIENCE";
const SPEAKS_FOR: &str = "TOKEN_SPEAKS_FOR";

/// Where a server listens, as far as its environment has it.
#[derive(Debug, Default)]
pub(super) struct Exposure {
    pub(super) address: Option<String>,
    pub(super) tls: Option<TlsFiles>,
    /// The server reads its environment.
    pub(super) is_read: bool,
}

impl Server {
    /// Takes the variables of a server, but for those by which it registers.
    ///
    /// # Errors
    /// The value of a variable cannot be read or is out of range.
    pub(crate) fn take_variables(mut self, vars: &mut Vars) -> Result<Self, ConfigError> {
        self.config.take(vars)?;
        self.exposure.is_read = true;
        if let Some(address) = vars.take(ADDRESS, |text| with_port(text).map(str::to_owned))? {
            self.exposure.address = Some(address);
        }
        let open_to_all = vars.take(OPEN_TO_ALL, flag)?;
        self.identity.open_to_all = open_to_all.unwrap_or(self.identity.open_to_all);
        if let Some(tls) = tls_files(vars)? {
            self.exposure.tls = Some(tls);
        }
        let server = self.token_variables(vars)?;
        if open_to_all == Some(true) && server.checks_callers() {
            let problem = "is true, but this server has tokens or another authenticator, which refuses callers all the same: \
                           unset one of the two";
            return Err(ConfigError::new(vars.full(OPEN_TO_ALL), problem));
        }
        Ok(server)
    }

    /// Whether anything establishes who calls.
    pub(super) fn checks_callers(&self) -> bool {
        #[cfg(feature = "tokens")]
        if self.tokens.is_some() {
            return true;
        }
        self.identity.authenticator.is_some() || self.identity.from_extensions
    }

    #[cfg(feature = "tokens")]
    fn token_variables(self, vars: &mut Vars) -> Result<Self, ConfigError> {
        use crate::token::{KeySet, TokenVerifier};

        let issuer = vars.take(ISSUER, text)?;
        let (file, url) = (vars.take(KEYS_FILE, text)?, vars.take(KEYS_URL, text)?);
        let (audience, others) = (vars.take(AUDIENCE, text)?, vars.take(SPEAKS_FOR, text)?);
        let failed = |name, problem| ConfigError::new(vars.full(name), problem);
        let Some(issuer) = issuer else {
            let set = [(KEYS_FILE, file), (KEYS_URL, url), (AUDIENCE, audience), (SPEAKS_FOR, others)];
            return match set.into_iter().find(|(_, value)| value.is_some()) {
                Some((name, _)) => Err(failed(name, "needs OCTOLLM_SERVER_TOKEN_ISSUER as well")),
                None => Ok(self),
            };
        };
        let mut keys = KeySet::new(issuer);
        for other in others.iter().flat_map(|others| others.split(',')).map(str::trim) {
            if other.is_empty() {
                return Err(failed(SPEAKS_FOR, "has an empty name between its commas"));
            }
            keys = keys.speaks_for(other);
        }
        let keys = match (file, url) {
            (Some(file), None) => {
                let text = std::fs::read_to_string(file).map_err(|source| {
                    failed(KEYS_FILE, "names a file that cannot be read").with_source(source)
                })?;
                let read = if text.trim_start().starts_with('{') {
                    keys.with_jwks(&text)
                } else {
                    keys.with_pem(None, &text)
                };
                read.map_err(|source| {
                    failed(KEYS_FILE, "names a file without a public key").with_source(source)
                })?
            }
            (None, Some(url)) => keys.url(&url).map_err(|source| {
                failed(KEYS_URL, "is not a URL of keys: use `https`").with_source(source)
            })?,
            _ => {
                let problem =
                    "needs OCTOLLM_SERVER_TOKEN_KEYS_FILE or OCTOLLM_SERVER_TOKEN_KEYS_URL, and not both";
                return Err(failed(ISSUER, problem));
            }
        };
        let verifier = TokenVerifier::builder().root(keys);
        Ok(self.tokens(match audience {
            Some(audience) => verifier.audience(audience),
            None => verifier,
        }))
    }

    #[cfg(not(feature = "tokens"))]
    fn token_variables(self, vars: &mut Vars) -> Result<Self, ConfigError> {
        for name in [ISSUER, KEYS_FILE, KEYS_URL, AUDIENCE, SPEAKS_FOR] {
            if vars.take(name, text)?.is_some() {
                return Err(ConfigError::new(vars.full(name), "needs the feature `tokens` of octollm"));
            }
        }
        Ok(self)
    }
}

fn tls_files(vars: &mut Vars) -> Result<Option<TlsFiles>, ConfigError> {
    let (certificate, key) = (vars.take(CERTIFICATE, path)?, vars.take(KEY, path)?);
    let client_ca = vars.take(CLIENT_CA, path)?;
    match (certificate, key) {
        (Some(_), Some(_)) if cfg!(not(feature = "tls")) => {
            Err(ConfigError::new(vars.full(CERTIFICATE), "needs the feature `tls` of octollm"))
        }
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_ca })),
        (None, None) if client_ca.is_none() => Ok(None),
        (None, _) => Err(ConfigError::new(vars.full(CERTIFICATE), "is not set, and TLS needs it")),
        (_, None) => Err(ConfigError::new(vars.full(KEY), "is not set, and TLS needs it")),
    }
}

impl TlsFiles {
    /// The variables of the files, with their paths as errors have them.
    pub(super) fn named(&self) -> [(&'static str, String); 3] {
        let path = |path: &PathBuf| path.display().to_string();
        let authorities = self.client_ca.as_ref().map(path).unwrap_or_default();
        [(CERTIFICATE, path(&self.certificate)), (KEY, path(&self.key)), (CLIENT_CA, authorities)]
    }
}

/// The variable that names the file of an error, in place of its path.
pub(super) fn of_file(names: Option<[(&'static str, String); 3]>, error: ConfigError) -> ConfigError {
    let named = names.into_iter().flatten().find(|(_, file)| file == error.setting());
    match named {
        Some((name, _)) => error.for_setting(format!("{PREFIX}{name}")),
        None => error,
    }
}

impl Exposure {
    /// How the environment can establish who calls, as the end of an error about that.
    pub(super) fn alternatives(&self) -> &'static str {
        match (self.is_read, cfg!(feature = "tokens")) {
            (false, _) => "",
            (true, true) => {
                "; or in the environment OCTOLLM_SERVER_TOKEN_ISSUER and OCTOLLM_SERVER_TOKEN_KEYS_FILE, or \
                 OCTOLLM_SERVER_OPEN_TO_ALL"
            }
            (true, false) => "; or in the environment OCTOLLM_SERVER_OPEN_TO_ALL",
        }
    }

    /// # Errors
    /// Names the variable by which a server should listen that listens elsewhere.
    pub(super) fn unused(&self) -> Result<(), ConfigError> {
        let set = [(ADDRESS, self.address.is_some()), (CERTIFICATE, self.tls.is_some())];
        match set.into_iter().find(|(_, is_set)| *is_set) {
            Some((name, _)) => {
                let problem =
                    "is set, but this server is mounted or listens on an acceptor of the program: unset it";
                Err(ConfigError::new(format!("{PREFIX}{name}"), problem))
            }
            None => Ok(()),
        }
    }
}

/// The whole name of the variable that has the address.
pub(super) const LISTEN: &str = "OCTOLLM_SERVER_LISTEN";

fn with_port(text: &str) -> Result<&str, &'static str> {
    let has_port =
        text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if has_port { Ok(text) } else { Err("is not an address with a port, such as 0.0.0.0:8103") }
}

fn path(path: &str) -> Result<PathBuf, &'static str> {
    text(path).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ServerConfig;

    #[test]
    fn the_table_for_operators_has_each_variable_with_its_default_and_no_other() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let document = std::fs::read_to_string(file).unwrap();
        assert_eq!(ServerConfig::undocumented(PREFIX, &document), [""; 0]);
        let names = [
            ADDRESS,
            OPEN_TO_ALL,
            CERTIFICATE,
            KEY,
            CLIENT_CA,
            ISSUER,
            KEYS_FILE,
            KEYS_URL,
            AUDIENCE,
            SPEAKS_FOR,
            crate::environment::REGISTER_AT,
            crate::environment::REGISTER_KEY,
            crate::environment::ADVERTISE,
        ];
        for name in names {
            assert!(document.contains(&format!("| `{PREFIX}{name}` | ")), "{name}");
        }
        let named = document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        for name in named.filter(|name| name.starts_with(PREFIX)) {
            let error = Server::new("judge").vars([(name, "\u{1}")]).err().map(|error| error.to_string());
            assert!(error.is_none_or(|error| !error.contains("is no setting")), "{name}");
        }
    }
}
