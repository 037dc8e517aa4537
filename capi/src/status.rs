//! How calls end.
//!
//! Knows no pointers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use qat_infer::Error;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// As asked.
    Ok = 0,
    /// An argument is NULL, no UTF-8, out of its range, or too much for the context.
    Invalid = 1,
    /// Files of the model are missing, damaged or of an unknown kind.
    Model = 2,
    /// Another call works on this session.
    Busy = 3,
    /// A mistake of this library. The session should be closed.
    Internal = 4,
}

/// Why a call did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    pub status: Status,
    pub message: String,
}

impl Failure {
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { status: Status::Invalid, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self { status: Status::Internal, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::Invalid(_) => Status::Invalid,
            _ => Status::Model,
        };
        Self { status, message: error.to_string() }
    }
}

/// What `work` gives; a panic becomes a failure, so that it doesn't unwind into C.
pub fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // What a panic leaves half done is a session's, and the interface says that it should be closed.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Failure::internal(format!("a mistake in qat: {text}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_failure_with_its_text() {
        let failure = caught::<()>(|| panic!("row {}", 7)).expect_err("a failure");
        assert_eq!(failure.status, Status::Internal);
        assert!(failure.message.contains("row 7"), "{}", failure.message);
    }

    #[test]
    fn what_the_user_chose_is_told_from_what_the_files_are() {
        let of = |error: Error| Failure::from(error).status;
        assert_eq!(of(Error::Invalid("a context of 0".into())), Status::Invalid);
        assert_eq!(of(Error::file("config.json".as_ref(), "truncated")), Status::Model);
    }
}
