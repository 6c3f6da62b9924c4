//! Attacks against a client.
use crate::frame::{Attack, Broken, Size};
pub(crate) fn attacks() -> Vec<Attack> {
    Vec::new()
}
pub(crate) struct Caller;
impl Caller {
    pub(crate) fn new(_: Size) -> Result<Self, Broken> {
        Ok(Self)
    }
    pub(crate) async fn command(_: std::sync::Arc<Self>, _: String) -> String {
        String::new()
    }
}
