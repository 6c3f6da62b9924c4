//! The opening handshake (RFC 6455 §4.2), and who may open a WebSocket.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use octollm_core::error::{ConfigError, ErrorKind, Failure};

use super::super::{
    body::HttpBody,
    routes::{Answer, Refusal},
};
use crate::wire::socket::{BEARER, VERSION, WEBSOCKET, accept_key, lists};

/// A request for a WebSocket that can be accepted.
pub(super) struct Opening {
    accept: HeaderValue,
    offers_bearer: bool,
    upgrade: OnUpgrade,
}

impl Opening {
    /// Checks a request.
    ///
    /// # Errors
    /// It asks for no WebSocket (426), not as it should (400), or for a page of another origin (403).
    pub(super) fn of(head: &Parts, origins: &[String]) -> Result<Self, Refusal> {
        let fields = &head.headers;
        let asks = head.version == Version::HTTP_11
            && lists(fields, &header::CONNECTION, b"upgrade")
            && lists(fields, &header::UPGRADE, WEBSOCKET.as_bytes());
        if !asks {
            let words = "this route is a WebSocket, which needs HTTP/1.1 and `Upgrade: websocket`";
            let refusal = Refusal::from(Failure::new(ErrorKind::UpgradeRequired, words));
            // HTTP/2 has no such fields.
            return Err(match head.version {
                Version::HTTP_2 => refusal,
                _ => refusal
                    .header(header::UPGRADE, WEBSOCKET)
                    .header(header::CONNECTION, HeaderValue::from_static("upgrade")),
            });
        }
        if single(fields, &header::SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
            let failure = Failure::new(ErrorKind::UpgradeRequired, "the version of WebSocket is 13");
            return Err(Refusal::from(failure).header(header::SEC_WEBSOCKET_VERSION, VERSION));
        }
        let refused = |words: &str| Refusal::from(Failure::new(ErrorKind::BadRequest, words));
        let key = single(fields, &header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
        let key = key.filter(|key| BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16));
        let key = key.ok_or_else(|| refused("malformed header sec-websocket-key"))?;
        let has_body = fields.contains_key(header::TRANSFER_ENCODING)
            || fields.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        if has_body {
            return Err(refused("a request for a WebSocket has no body"));
        }
        check_origin(head, origins)?;
        let accept = HeaderValue::try_from(accept_key(key)).map_err(|_| refused("malformed key"))?;
        let upgrade = head.extensions.get::<OnUpgrade>().cloned().ok_or_else(|| {
            Failure::new(ErrorKind::NotImplemented, "the server around this one passes no connections on")
        })?;
        let offers_bearer = lists(fields, &header::SEC_WEBSOCKET_PROTOCOL, BEARER.as_bytes());
        Ok(Self { accept, offers_bearer, upgrade })
    }

    /// 101, and the connection after it.
    pub(super) fn accept(self) -> (Answer, OnUpgrade) {
        let mut answer = Answer(http::Response::new(HttpBody::empty()))
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::UPGRADE, WEBSOCKET)
            .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
            .header(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if self.offers_bearer {
            answer = answer.header(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
        }
        (answer, self.upgrade)
    }
}

/// The value of a field that is there once.
fn single<'h>(head: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h HeaderValue> {
    let mut values = head.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Moves the token of a browser, which can set no `Authorization`, from `Sec-WebSocket-Protocol: bearer, <token>` there.
///
/// # Errors
/// There are two tokens.
pub(crate) fn token_of_protocol(head: &mut HeaderMap) -> Result<(), Failure> {
    let token = {
        let offered = head.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let mut offered = offered
            .flat_map(|field| field.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .skip_while(|protocol| *protocol != BEARER.as_bytes());
        match (offered.next(), offered.next()) {
            (Some(_), Some(token)) if !token.is_empty() => [b"Bearer ", token].concat(),
            _ => return Ok(()),
        }
    };
    let malformed = |words| Failure::new(ErrorKind::BadRequest, words);
    if head.contains_key(header::AUTHORIZATION) {
        return Err(malformed("there is a token in Authorization and in Sec-WebSocket-Protocol"));
    }
    let mut authorization =
        HeaderValue::from_bytes(&token).map_err(|_| malformed("malformed header sec-websocket-protocol"))?;
    authorization.set_sensitive(true);
    head.insert(header::AUTHORIZATION, authorization);
    head.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
    Ok(())
}

/// Checks the origin of a page. What is no browser has none.
fn check_origin(head: &Parts, allowed: &[String]) -> Result<(), Failure> {
    let refused = || {
        let words = "a page of this origin may not open a WebSocket here";
        Err(Failure::new(ErrorKind::Refused, words).before_execution())
    };
    if !head.headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    let Some(origin) = single(&head.headers, &header::ORIGIN).and_then(|origin| origin.to_str().ok()) else {
        return refused();
    };
    if allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
        return Ok(());
    }
    let host = single(&head.headers, &header::HOST).and_then(|host| host.to_str().ok());
    let authority = origin.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
    match (authority, host) {
        // Before a proxy the scheme of the server is not known here.
        (Some((_, authority)), Some(host)) if authority.eq_ignore_ascii_case(host) => Ok(()),
        _ => refused(),
    }
}

/// Checks the origins that are set.
///
/// # Errors
/// One of them is not as browsers send it.
pub(super) fn origins(origins: Vec<String>) -> Result<Arc<[String]>, ConfigError> {
    for origin in &origins {
        let is_origin = origin.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme().is_some() && uri.authority().is_some() && uri.path() == "/" && uri.query().is_none()
        });
        if !is_origin || origin.ends_with('/') {
            let problem = format!("is {origin:?}, which is no origin such as https://dashboard.example");
            return Err(ConfigError::new("allow_origin", problem));
        }
    }
    Ok(origins.into())
}
