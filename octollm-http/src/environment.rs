//! A server as its environment configures it, with the orchestrators at which it registers.

use std::ffi::{OsStr, OsString};

use octollm_core::{
    __private::settings::{Vars, text},
    error::ConfigError,
};

use crate::{OrchestratorClient, Server, client::ORCHESTRATOR_URL, server::PREFIX};

// The variables by which a server registers.
pub(crate) const REGISTER_AT: &str = "REGISTER_AT";
pub(crate) const REGISTER_KEY: &str = "REGISTER_KEY_FILE";
pub(crate) const ADVERTISE: &str = "ADVERTISE";

/// The environment.
impl Server {
    /// Configures the server by the environment.
    ///
    /// `OCTOLLM_SERVER_MAX_BODY=64KiB` is [`max_body`](Self::max_body) of 65,536, `OCTOLLM_SERVER_DRAIN_NOTICE=10s` is
    /// [`drain_notice`](Self::drain_notice) of 10 s, and so on for each limit. As with any setter, the last one holds: what is set
    /// before this is a default, which a variable replaces, and what is set after it is fixed.
    ///
    /// | variable | |
    /// |---|---|
    /// | `OCTOLLM_SERVER_LISTEN` | address and port for [`serve`](Self::serve) and [`bind`](Self::bind), in place of their argument |
    /// | `OCTOLLM_SERVER_TLS_CERT_FILE`, `_TLS_KEY_FILE` | PEM files, with which they accept TLS alone (feature `tls`); both or none |
    /// | `OCTOLLM_SERVER_TLS_CLIENT_CA_FILE` | PEM file with the authorities whose clients may connect |
    /// | `OCTOLLM_SERVER_TOKEN_ISSUER` | the `iss` of the root whose tokens are accepted (feature `tokens`), in place of an authenticator of the program |
    /// | `OCTOLLM_SERVER_TOKEN_KEYS_URL`, `_TOKEN_KEYS_FILE` | where its public keys are: the URL of a JWK set, or a file with such a set or a PEM; one of them |
    /// | `OCTOLLM_SERVER_TOKEN_AUDIENCE` | the `aud` of the tokens; by default the id of the server |
    /// | `OCTOLLM_SERVER_TOKEN_SPEAKS_FOR` | other issuers, separated by commas, for whose subjects the root issues tokens, as a brain does |
    /// | `OCTOLLM_SERVER_REGISTER_AT` | URL of an orchestrator at which the arm [registers](Self::register), or several, separated by commas. Limits and tokens are those of [`OrchestratorClient::from_env`](crate::OrchestratorClient::from_env) |
    /// | `OCTOLLM_SERVER_REGISTER_KEY_FILE` | PEM file with the private key that signs the registrations (feature `tokens`) |
    /// | `OCTOLLM_SERVER_ADVERTISE` | URL at which the arm is registered, in place of its [`endpoint`](Self::endpoint) |
    /// | `OCTOLLM_SERVER_OPEN_TO_ALL` | `true` for [`open_to_all`](Self::open_to_all) |
    ///
    /// ```no_run
    /// # use octollm_http::Server;
    /// # async fn run(server: Server) -> Result<(), octollm_core::error::ConfigError> {
    /// server.env()?.serve("127.0.0.1:8103").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A variable that begins with `OCTOLLM_` is unknown, or its value cannot be read or is out of range. The setting of the error is
    /// its name. Files are read here, but for those of TLS, which [`bind`](Self::bind) reads. A server that does not listen on TCP
    /// by itself is not built where a variable has its address or its certificate.
    pub fn env(self) -> Result<Self, ConfigError> {
        self.vars(std::env::vars_os())
    }

    /// Configures the server by these variables, as [`env`](Self::env) does.
    ///
    /// # Errors
    /// Those of [`env`](Self::env).
    pub fn vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let owned = |(name, value): (K, V)| (name.as_ref().to_owned(), value.as_ref().to_owned());
        let variables: Vec<(OsString, OsString)> = variables.into_iter().map(owned).collect();
        let given = || variables.iter().map(|(name, value)| (name, value));
        let mut vars = Vars::read(PREFIX, given())?;
        let mut server = self.take_variables(&mut vars)?;
        if let Some(url) = vars.take(ADVERTISE, text)? {
            server = server.endpoint(url);
        }
        server = server.registration_variables(&mut vars)?;
        let urls = vars.take(REGISTER_AT, text)?;
        for url in urls.iter().flat_map(|urls| urls.split(',')).map(str::trim) {
            // Of the variables of the client all but its URL.
            let others = given().filter(|(name, _)| *name != ORCHESTRATOR_URL);
            let others = others.map(|(name, value)| (name.as_os_str(), value.as_os_str()));
            let of_client = others.chain([(OsStr::new(ORCHESTRATOR_URL), OsStr::new(url))]);
            let client = OrchestratorClient::from_vars(of_client);
            let named = |error: ConfigError| match error.setting() {
                ORCHESTRATOR_URL => error.for_setting(vars.full(REGISTER_AT)),
                _ => error,
            };
            server = server.register(client.map_err(named)?);
        }
        vars.finish()?;
        Ok(server)
    }

    #[cfg(feature = "tokens")]
    fn registration_variables(self, vars: &mut Vars) -> Result<Self, ConfigError> {
        use crate::token::SigningKey;

        let Some(file) = vars.take(REGISTER_KEY, text)? else { return Ok(self) };
        let failed = |problem| ConfigError::new(vars.full(REGISTER_KEY), problem);
        let pem = std::fs::read_to_string(file)
            .map_err(|source| failed("names a file that cannot be read").with_source(source))?;
        let key = SigningKey::from_pem(&pem.into())
            .map_err(|source| failed("names a file without a private key").with_source(source))?;
        Ok(self.registration_key(key))
    }

    #[cfg(not(feature = "tokens"))]
    fn registration_variables(self, vars: &mut Vars) -> Result<Self, ConfigError> {
        if vars.take(REGISTER_KEY, text)?.is_some() {
            return Err(ConfigError::new(vars.full(REGISTER_KEY), "needs the feature `tokens` of octollm"));
        }
        Ok(self)
    }
}
