//! The same over a mesh.

use octollm_core::mesh::Mesh;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.score", output = BTreeMap<String, Vec<f64>>)]
struct ScoreText {
    weight: f64,
}

struct Scorer;

#[async_trait]
impl Arm<Ping> for Scorer {
    async fn execute(&self, _: Ping, _: &Context) -> Result<(), ArmError> {
        Ok(())
    }
}

/// Divides 0 by 0 where the weight is 0.
#[async_trait]
impl Arm<ScoreText> for Scorer {
    async fn execute(&self, input: ScoreText, cx: &Context) -> Result<BTreeMap<String, Vec<f64>>, ArmError> {
        cx.call(Ping).await?;
        Ok([("scores".to_owned(), vec![1.0, (2.0 * input.weight) / input.weight])].into())
    }
}

#[tokio::test(start_paused = true)]
async fn an_input_without_members_is_called_like_any_other() {
    let mesh = Mesh::builder().arm::<Ping>("scorer", Scorer).start().await;
    mesh.context().call(Ping).await.unwrap();
    let contract = Ping::SPEC.reference();
    mesh.context().call_json(&contract, &json!({})).await.unwrap();
    let error = mesh.context().call_json(&contract, &json!({ "x": 1 })).await.unwrap_err();
    assert_eq!(error.failure().violations[0].to_string(), "x: unknown field");
}

#[tokio::test(start_paused = true)]
async fn an_output_with_a_number_that_is_none_fails_and_is_named() {
    let arms = Mesh::builder().arm::<Ping>("pinged", Scorer).arm::<ScoreText>("scorer", Scorer);
    let mesh = arms.start().await;
    let scores = mesh.context().call(ScoreText { weight: 2.0 }).await.unwrap();
    assert_eq!(scores["scores"], [1.0, 2.0]);
    let error = mesh.context().call(ScoreText { weight: 0.0 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ArmFailed);
    let expected = "the output cannot be written: scores[1] is infinite or not a number";
    assert_eq!(error.failure().message, expected);
    assert!(error.may_have_executed());
}

#[tokio::test(start_paused = true)]
async fn an_input_with_a_number_that_is_none_is_not_sent() {
    let mesh = Mesh::builder().arm::<ScoreText>("scorer", Scorer).start().await;
    let error = mesh.context().call(ScoreText { weight: f64::NAN }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ValidationFailed);
    assert!(error.failure().message.contains("weight is infinite or not a number"), "{error}");
    assert!(!error.may_have_executed());
    assert_eq!(mesh.calls().len(), 0);
}
