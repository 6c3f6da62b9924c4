//! One error for programs that do a bit of everything.

use std::{error::Error as StdError, fmt};

use super::ArmError;

/// Whatever went wrong in a program: every error converts into it with `?`.
///
/// It is for `main` and its like, not for deciding what to do next; [`downcast_ref`](Self::downcast_ref) finds the
/// typed error again. Its `Debug` is for the person who ran the program: `fn main() -> Result<(), octollm::Error>`
/// prints one line, the causes behind it. It is not an [`std::error::Error`] itself, which is what lets every error
/// convert into it.
pub struct Error(Box<dyn StdError + Send + Sync>);

impl Error {
    /// The typed error, if it is one of this type.
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref()
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl From<ArmError> for Error {
    fn from(error: ArmError) -> Self {
        Self(error.into())
    }
}

impl From<Error> for Box<dyn StdError + Send + Sync> {
    fn from(error: Error) -> Self {
        error.0
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

    #[test]
    fn the_person_is_told_the_causes_too() {
        let failure = Failure::new(ErrorKind::Unreachable, "no connection");
        let call =
            CallError::new("a.b".parse().unwrap(), failure).with_source(std::io::Error::other("refused"));
        let error = Error::from(call);
        assert_eq!(format!("{error:?}"), "a.b: no connection: refused");
        assert!(error.downcast_ref::<CallError>().is_some());
    }
}
