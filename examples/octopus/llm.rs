//! A model behind `/v1/chat/completions`, whose words are streamed as they arrive.

use std::{env, time::Duration};

use futures_util::StreamExt;
use octollm::{
    Context, RestClient,
    budget::Usage,
    error::{ArmError, CallError, ConfigError, ErrorKind, Failure},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::system::WriteStory;

/// The client of a model.
pub(crate) struct Model {
    client: RestClient,
    path: &'static str,
    name: String,
}

/// Why there is no story.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error("the model cannot be asked: {0}")]
    Call(#[from] CallError),
    /// An event whose data is none of the protocol.
    #[error("the model has sent a malformed frame: {0}")]
    Frame(Failure),
    /// An error that the server sends within the stream.
    #[error("the model has failed: {0}")]
    Failed(String),
    #[error("the model has stopped before the end of the story")]
    Unfinished,
    #[error(
        "the model has stopped at its limit of tokens, before the end of the story (finish_reason `length`)"
    )]
    Length,
    #[error("a filter has withheld words of the model (finish_reason `content_filter`)")]
    Filtered,
    #[error("the model has sent no words")]
    Empty,
    #[error("the story of the model is longer than {MAX_STORY} bytes")]
    TooLong,
    #[error(transparent)]
    Budget(Failure),
}

/// Bytes of the longest story.
const MAX_STORY: usize = 64 << 10;

impl ModelError {
    /// The error of the arm, whose caller reads what is wrong.
    pub(crate) fn into_arm_error(self) -> ArmError {
        match self {
            Self::Call(error) => error.into(),
            Self::Budget(failure) => failure.into(),
            error => ArmError::new(ErrorKind::UpstreamFailed, error.to_string()),
        }
    }
}

/// One event of the stream.
#[derive(Deserialize)]
struct Frame {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Used>,
    #[serde(default)]
    error: Option<Value>,
    /// The error itself, in the frame of an event `error`.
    #[serde(default)]
    message: Option<String>,
}

impl Frame {
    /// The message of the error that the frame is.
    fn problem(&mut self, event: &str) -> Option<String> {
        match self.error.take() {
            Some(Value::String(message)) => Some(message),
            Some(error) => Some(match error.get("message").and_then(Value::as_str) {
                Some(message) => message.to_owned(),
                None => error.to_string(),
            }),
            None if event == "error" || self.choices.is_empty() => self.message.take(),
            None => None,
        }
    }
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Used {
    #[serde(default)]
    total_tokens: u64,
}

impl Model {
    /// A model at this URL, with or without `/v1` at its end. The key is `OPENAI_API_KEY`.
    pub(crate) fn new(url: &str, name: String) -> Result<Self, ConfigError> {
        let url = url.trim_end_matches('/');
        let path = if url.ends_with("/v1") { "chat/completions" } else { "v1/chat/completions" };
        let mut client = RestClient::builder(url).name("model").within(Duration::from_secs(60));
        if let Ok(key) = env::var("OPENAI_API_KEY") {
            client = client.bearer(key);
        }
        Ok(Self { client: client.build()?, path, name })
    }

    /// Streams a story, and returns it whole.
    pub(crate) async fn write(&self, about: &str, cx: &Context) -> Result<String, ModelError> {
        let body = json!({
            "model": self.name,
            "stream": true,
            "stream_options": { "include_usage": true },
            "messages": [
                { "role": "system", "content": "You tell very short stories, in four sentences of plain text." },
                { "role": "user", "content": format!("Tell a story about {about}.") },
            ],
        });
        let mut events = self.client.post(self.path).json(&body).within_context(cx).events().await?;
        let (mut story, mut end) = (String::new(), None);
        while let Some(event) = events.next().await {
            let event = event?;
            if event.data == "[DONE]" {
                end.get_or_insert_with(|| "stop".to_owned());
                break;
            }
            let mut frame: Frame = event.json().map_err(ModelError::Frame)?;
            if let Some(problem) = frame.problem(&event.event) {
                return Err(ModelError::Failed(problem));
            }
            if let Some(used) = frame.usage {
                cx.spend(Usage::tokens(used.total_tokens)).map_err(ModelError::Budget)?;
            }
            let Some(choice) = frame.choices.into_iter().find(|choice| choice.index == 0) else { continue };
            end = choice.finish_reason.or(end);
            let Some(words) = choice.delta.content.filter(|words| !words.is_empty()) else { continue };
            story += &words;
            if story.len() > MAX_STORY {
                return Err(ModelError::TooLong);
            }
            cx.chunk::<WriteStory>(&words).await;
        }
        match end.as_deref() {
            None => Err(ModelError::Unfinished),
            Some("length") => Err(ModelError::Length),
            Some("content_filter") => Err(ModelError::Filtered),
            Some(_) if story.trim().is_empty() => Err(ModelError::Empty),
            Some(_) => Ok(story),
        }
    }
}
