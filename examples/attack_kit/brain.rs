//! Attacks against a brain.
use crate::frame::Attack;
pub(crate) fn attacks() -> Vec<Attack> {
    Vec::new()
}
pub(crate) async fn command(_: String) -> String {
    String::new()
}
