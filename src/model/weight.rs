//! How much a plugin's scores count. Key type: [`PluginWeight`].

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Where several plugins rank candidates, the scores of one count so many times: 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PluginWeight(u8);

impl PluginWeight {
    /// `weight` times; an error names the API's field.
    pub fn new(weight: u32) -> Result<Self, SpecError> {
        match u8::try_from(weight) {
            Ok(weight @ 1..=100) => Ok(Self(weight)),
            _ => Err(SpecError::new("weight", format!("{weight} is none: 1 to 100 are"))),
        }
    }

    /// As a number.
    pub fn get(self) -> u32 {
        self.0.into()
    }

    /// What a score counts for. A chain has 32 plugins at most: their sum is far from the type's bounds.
    pub fn of(self, score: i32) -> i64 {
        i64::from(score) * i64::from(self.0)
    }

    /// Whether a score counts for itself, as without weights: then it is left out of what is written.
    pub fn is_one(&self) -> bool {
        self.0 == 1
    }
}

impl Default for PluginWeight {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u32> for PluginWeight {
    type Error = SpecError;

    fn try_from(weight: u32) -> Result<Self, SpecError> {
        Self::new(weight)
    }
}

impl From<PluginWeight> for u32 {
    fn from(weight: PluginWeight) -> Self {
        weight.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_bounds_wherever_it_comes_from() {
        for weight in [0, 101, 257, u32::MAX] {
            assert!(PluginWeight::new(weight).is_err(), "{weight}");
            assert!(serde_json::from_str::<PluginWeight>(&weight.to_string()).is_err(), "{weight}");
        }
        for weight in [1, 2, 100] {
            let read: PluginWeight = serde_json::from_str(&weight.to_string()).unwrap();
            assert_eq!((read, read.get(), read.is_one()), (PluginWeight::new(weight).unwrap(), weight, weight == 1));
        }
        let most = PluginWeight::new(100).unwrap();
        assert_eq!((most.of(i32::MIN), most.of(i32::MAX)), (-214_748_364_800, 214_748_364_700));
    }
}
