//! What arms tell about themselves.

use octollm::{
    card::{ArmCard, ArmStatus},
    contract::ContractCard,
};

use crate::{
    contracts::{ValidateCode, WriteText},
    golden::{hold_json, read_json},
};

#[test]
fn the_card_of_a_contract() {
    hold_json("contract_card.json", &ContractCard::of::<ValidateCode>());
    hold_json("contract_card_with_chunk.json", &ContractCard::of::<WriteText>());
}

/// The card of an arm that is not all well.
pub(crate) fn judge() -> ArmCard {
    let mut card = ArmCard::new("judge");
    card.description = "Reads code and finds fault with it.".into();
    card.version = "1.2.3".into();
    card.capabilities = vec!["code.validate".into()];
    card.instance = Some("4kQ9fZ2mXb1-0000001".into());
    card.cost_tier = 2;
    card.endpoint = Some("http://judge-arm:8103".into());
    card.status = ArmStatus::Degraded;
    card.contracts = vec![ContractCard::of::<ValidateCode>()];
    card
}

#[test]
fn the_card_of_an_arm() {
    hold_json("arm_card.json", &judge());
}

/// Of a card made elsewhere no more is needed than this.
#[test]
fn the_least_card() {
    let card: ArmCard = read_json("foreign_card_least.json");
    let contract = &card.contracts[0];
    assert_eq!(card.contract(&contract.reference().unwrap()), Some(contract));
    assert_eq!((contract.version, contract.idempotent, &*contract.fingerprint), (1, false, ""));
    assert_eq!((card.cost_tier, card.status), (3, ArmStatus::Healthy));
}
