//! Errors in one line.

use std::error::Error;

/// An error with all its causes, outermost first, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Failed(&'static str, #[source] Option<Box<Failed>>);

    #[test]
    fn causes_follow_the_error_from_the_outside_in() {
        let inner = Failed("the disk is full", None);
        let outer = Failed("not stored", Some(Box::new(Failed("failed to write", Some(Box::new(inner))))));
        assert_eq!(chain(&outer), "not stored: failed to write: the disk is full");
        assert_eq!(chain(&Failed("alone", None)), "alone");
    }
}
