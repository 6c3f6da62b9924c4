//! By what tasks with a uniqueness key are compared.

use sha2::{Digest, Sha256};

use super::submitted::Submitted;
use crate::{
    contract::{ContractRef, hex},
    parts::Caller,
};

/// A digest of a key within its scope. Two tokens that may find each other's tasks have one scope: a key returns no task that
/// its caller would not find.
pub(super) fn digest(
    key: &str,
    contract: &ContractRef,
    caller: &Caller,
    submitted: Option<&Submitted>,
) -> String {
    let kind = match caller {
        Caller::Unchecked => "unchecked",
        Caller::Anonymous => "anonymous",
        Caller::Known(_) => "known",
    };
    let grant = caller.grant();
    let contract = contract.to_string();
    let (under, by) = submitted.map_or((None, None), Submitted::parts);
    let parts = [
        Some(kind),
        grant.and_then(|grant| grant.issuer.as_deref()),
        grant.map(|grant| &*grant.subject),
        under,
        by,
        Some(&*contract),
        Some(key),
    ];
    let mut digest = Sha256::new();
    for part in parts {
        // An absent part differs from an empty one, and no part runs into the next.
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        digest.update(length.to_be_bytes());
        digest.update(part.unwrap_or_default());
    }
    hex(&digest.finalize()[..16])
}
