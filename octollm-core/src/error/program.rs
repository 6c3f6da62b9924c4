//! One error for programs that do a bit of everything.

use std::{error::Error as StdError, fmt};

use super::ArmError;

/// Whatever went wrong in a program: everything that converts into a boxed error converts into it with `?`, and so does
/// an [`ArmError`].
///
/// It is for `main` and its like, not for deciding what to do next; [`downcast_ref`](Self::downcast_ref) returns the
/// typed error again. Its `Debug` is for the person who ran the program: `fn main() -> Result<(), octollm::Error>`
/// prints one line with the causes. It is not an [`std::error::Error`] itself, which is what lets every error convert
/// into it; [`into_boxed`](Self::into_boxed) returns one.
pub struct Error(Box<dyn StdError + Send + Sync>);

impl Error {
    /// The typed error, if it is one of this type.
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }

    /// The same as a standard error.
    pub fn into_boxed(self) -> Box<dyn StdError + Send + Sync> {
        self.0
    }
}

impl<E: Into<Box<dyn StdError + Send + Sync>>> From<E> for Error {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl From<ArmError> for Error {
    fn from(error: ArmError) -> Self {
        Self(error.into_boxed())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{CallError, ErrorKind, Failure};

    fn call() -> CallError {
        let failure = Failure::new(ErrorKind::Unreachable, "no connection");
        CallError::new("a.b".parse().unwrap(), failure).with_source(std::io::Error::other("refused"))
    }

    #[test]
    fn the_person_reads_the_causes_too() {
        let error = Error::from(call());
        assert_eq!(format!("{error:?}"), "a.b: no connection: unreachable: refused");
        assert!(error.downcast_ref::<CallError>().is_some());
    }

    #[test]
    fn a_main_takes_everything() {
        let all: [fn() -> Result<(), Error>; 5] = [
            || Ok(Err(call())?),
            || Ok(Err("a text")?),
            || Ok(Err(anyhow::anyhow!("an anyhow error"))?),
            || Ok(Err(ArmError::failed("an arm's own"))?),
            || Ok(Err(Box::<dyn StdError + Send + Sync>::from("boxed"))?),
        ];
        let texts = all.map(|main| main().unwrap_err().to_string());
        assert_eq!(texts, ["a.b: no connection", "a text", "an anyhow error", "an arm's own", "boxed"]);
    }

    #[test]
    fn a_main_of_anyhow_takes_ours() {
        let all: [fn() -> anyhow::Result<()>; 2] =
            [|| Ok(Err(call())?), || Err(anyhow::Error::from_boxed(Error::from(call()).into_boxed()))];
        for main in all {
            assert_eq!(format!("{:#}", main().unwrap_err()), "a.b: no connection: unreachable: refused");
        }
    }
}
