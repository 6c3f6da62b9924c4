//! The system: its contracts, its arms, and the program of its brains.

use std::{fs::OpenOptions, io::Write, path::PathBuf, time::Duration};

use octollm::{
    error::CallError,
    prelude::*,
    reflex::{Reaction, Reflex, ReflexInput},
    update::Phase,
};

use crate::llm::{Model, ModelError};

/// Writes a story, word by word.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "story.write", output = String, chunk = String, idempotent, timeout = "120s")]
pub(crate) struct WriteStory {
    #[garde(length(min = 1, max = 1_000))]
    pub(crate) about: String,
}

/// Reads a story, and grades it.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "story.review", output = Grade, idempotent, timeout = "10s")]
pub(crate) struct ReviewStory {
    pub(crate) story: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Grade {
    pub(crate) words: usize,
    pub(crate) stars: u8,
}

/// Publishes a story, and must not do so twice.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "story.publish", output = String, timeout = "10s")]
pub(crate) struct PublishStory {
    pub(crate) story: String,
}

/// Writes by itself, or has a model write.
pub(crate) struct Writer(pub(crate) Option<Model>);

#[async_trait]
impl Arm<WriteStory> for Writer {
    async fn execute(&self, input: WriteStory, cx: &Context) -> Result<String, ArmError> {
        if let Some(model) = &self.0 {
            return model.write(&input.about, cx).await.map_err(ModelError::into_arm_error);
        }
        let mut story = String::new();
        for word in tale(&input.about).split_inclusive(' ') {
            tokio::time::sleep(WORD).await;
            cx.chunk::<WriteStory>(&word.to_owned()).await;
            story += word;
        }
        Ok(story)
    }
}

/// Time for a word, about that of a small model.
const WORD: Duration = Duration::from_millis(20);

fn tale(about: &str) -> String {
    format!(
        "Once upon a time there was {about}. It had eight friends, and each of them did one thing well. When one of them \
         fell asleep, another took its place, and nobody noticed. So they lived happily, and nothing was done twice."
    )
}

pub(crate) struct Critic;

#[async_trait]
impl Arm<ReviewStory> for Critic {
    async fn execute(&self, input: ReviewStory, _: &Context) -> Result<Grade, ArmError> {
        if input.story.contains(DULL) {
            return Err(ArmError::failed("the story is too dull to be published"));
        }
        let words = input.story.split_whitespace().count();
        Ok(Grade { words, stars: if words > 20 { 5 } else { 3 } })
    }
}

/// A subject whose stories are not published, so that some tasks fail.
pub(crate) const DULL: &str = "the tax office";

/// Appends a line for each story to a file, which shows later whether one was published twice.
pub(crate) struct Publisher(pub(crate) PathBuf);

#[async_trait]
impl Arm<PublishStory> for Publisher {
    async fn execute(&self, _: PublishStory, cx: &Context) -> Result<String, ArmError> {
        let task = cx.task_id().map_or_else(|| "-".to_owned(), ToString::to_string);
        let mut ledger = OpenOptions::new().create(true).append(true).open(&self.0)?;
        // One write, so that the lines of two processes do not mix.
        ledger.write_all(format!("{task}\n").as_bytes())?;
        Ok(format!("stories/{task}"))
    }
}

/// The programs of the tasks. Their calls are in the journal: another brain goes on where one was killed.
pub(crate) struct Editor;

#[async_trait]
impl Arm<TaskRequest> for Editor {
    async fn execute(&self, request: TaskRequest, cx: &Context) -> Result<TaskResult, ArmError> {
        let about = request.goal.split(" [").next().unwrap_or_default().trim_start_matches("a story about ");
        cx.phase(Phase::Execution);
        cx.progress(10, "writing");
        let story = write(about, cx).await?;
        cx.phase(Phase::Validation);
        cx.progress(70, "reviewing");
        let grade = cx.call(ReviewStory { story: story.clone() }).await?;
        cx.progress(90, "publishing");
        cx.call(PublishStory { story: story.clone() }).await?;
        Ok(TaskResult::new(story).confidence(f64::from(grade.stars) / 5.0))
    }
}

/// A story alone, which is neither reviewed nor published.
#[async_trait]
impl Arm<WriteStory> for Editor {
    async fn execute(&self, input: WriteStory, cx: &Context) -> Result<String, ArmError> {
        Ok(write(&input.about, cx).await?)
    }
}

/// Has a writer write, and passes its words on.
async fn write(about: &str, cx: &Context) -> Result<String, CallError> {
    let input = || WriteStory { about: about.to_owned() };
    let mut words = cx.stream(input());
    while let Some(word) = words.next().await {
        cx.chunk::<WriteStory>(&word).await;
    }
    match words.output().await {
        // A writer that was killed half-way: a reader has a part already, the task needs the whole.
        Err(error) if error.kind() == ErrorKind::ConnectionLost => cx.call(input()).await,
        written => written,
    }
}

/// Refuses what tries to take the arms over.
pub(crate) struct Guard;

#[async_trait]
impl Reflex for Guard {
    async fn react(&self, input: &mut ReflexInput, _: &Context) -> Result<Reaction, ArmError> {
        if input.text().to_lowercase().contains("previous instructions") {
            input.injection_detected = true;
            input.raise_risk(0.9);
            return Ok(Reaction::Refuse("the goal tries to take the arms over".into()));
        }
        Ok(Reaction::Pass)
    }
}
