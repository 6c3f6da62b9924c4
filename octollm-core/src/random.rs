//! Random bits, for which the system is asked once.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// 256 bits that nobody outside of this process can predict: the hash of 244 random bits of the system and a count.
pub(crate) fn bits() -> [u8; 32] {
    static SEED: LazyLock<[Uuid; 2]> = LazyLock::new(|| [Uuid::new_v4(), Uuid::new_v4()]);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let [first, second] = &*SEED;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Sha256::new().chain_update(first).chain_update(second).chain_update(count.to_le_bytes()).finalize().into()
}

/// 64 of them.
pub(crate) fn number() -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = bits();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bits_differ_from_those_before() {
        let all: std::collections::HashSet<_> = (0..1_000).map(|_| number()).collect();
        assert_eq!(all.len(), 1_000);
        let set = all.iter().map(|number| number.count_ones()).sum::<u32>();
        assert!((31_000..33_000).contains(&set), "half of 64 000: {set}");
    }
}
