//! Why not. Key types: [`Refusal`], [`Reasons`].

use crate::Denial;

/// Reasons that one ranking may name (`wit/`).
const MAX_REASONS: usize = 16;

/// Why the answer is no, or a candidate is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable and machine-readable: 1 to 64 bytes of `a-z`, `0-9`, `-` and `.`, such as `limit.vcpus`.
    pub code: &'static str,
    /// For people, on one line: 1 to 512 bytes. Best with the value asked for and the limit.
    pub message: String,
}

/// A refusal.
pub fn refuse(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code.into(), message: refusal.message }
    }
}

/// The reasons of a ranking: candidates that are out for the same one share it.
#[derive(Debug, Default)]
pub struct Reasons {
    /// With their codes as constants, which are compared faster.
    list: Vec<(&'static str, Denial)>,
}

impl Reasons {
    /// Number of this reason in the list; what does not fit any more shares the last.
    pub fn number(&mut self, refusal: Refusal) -> u32 {
        let is_it = |(code, known): &(&'static str, Denial)| {
            known.message == refusal.message && (std::ptr::eq(*code, refusal.code) || *code == refusal.code)
        };
        let index = self.list.iter().position(is_it).unwrap_or_else(|| {
            if self.list.len() < MAX_REASONS {
                self.list.push((refusal.code, refusal.into()));
            }
            self.list.len() - 1
        });
        u32::try_from(index).unwrap_or(0)
    }

    /// All of them, by number.
    pub fn into_list(self) -> Vec<Denial> {
        self.list.into_iter().map(|(_, denial)| denial).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reason_is_named_once_and_the_list_is_bounded() {
        let mut reasons = Reasons::default();
        let numbers = ["a", "b", "a"].map(|message| reasons.number(refuse("code", message)));
        assert_eq!(numbers, [0, 1, 0]);
        assert_eq!(reasons.number(refuse("other", "a")), 2, "the code counts too");
        let numbers: Vec<_> = (0..20).map(|at| reasons.number(refuse("code", at.to_string()))).collect();
        assert_eq!((numbers[12], numbers[13], numbers[19]), (15, 15, 15));
        assert_eq!(reasons.into_list().len(), MAX_REASONS);
    }
}
