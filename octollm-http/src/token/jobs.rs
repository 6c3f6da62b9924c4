//! Tokens in jobs, which workers verify as servers verify those of requests.

use std::sync::Arc;

use async_trait::async_trait;
use octollm_core::{
    card::ArmCard,
    error::{ErrorKind, Failure},
    parts::Caller,
    worker::{AuthenticateJob, AuthorizeJob},
};

use super::{TokenIssuer, TokenVerifier, issuer::BEARER};

/// The caller is the subject of the token of its job, and anonymous without a token.
#[async_trait]
impl AuthenticateJob for TokenVerifier {
    async fn authenticate(&self, token: Option<&str>) -> Result<Caller, Failure> {
        match token {
            Some(token) => Ok(Caller::Known(self.verify_and_fetch(token).await?)),
            None => Ok(Caller::Anonymous),
        }
    }
}

/// A known caller gets a token that its grant covers. A root acts for itself where callers are not checked. Other callers get none.
impl AuthorizeJob for TokenIssuer {
    fn authorize(
        &self,
        caller: &Caller,
        scopes: Option<&[&str]>,
        callee: &ArmCard,
    ) -> Result<Option<String>, Failure> {
        let grant = match (caller, scopes) {
            (Caller::Known(grant), _) => Some(grant),
            (Caller::Unchecked, Some(_)) if self.is_root() => None,
            _ => return Ok(None),
        };
        let mut card = ArmCard::new(&*callee.arm_id);
        (card.needs, card.key) = (callee.needs.clone(), callee.key.clone());
        let header = self.header(grant, scopes, &Arc::new(card)).map_err(Failure::before_execution)?;
        let token = header.to_str().ok().and_then(|value| value.strip_prefix(BEARER));
        let token = token.ok_or_else(|| Failure::of(ErrorKind::Internal).before_execution())?;
        Ok(Some(token.to_owned()))
    }
}
