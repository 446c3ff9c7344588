//! Two JSON values, and where they differ. Key function: [`differences`].

use serde_json::Value;

/// Differences that are told, and characters of a value in one.
const MAX_TOLD: usize = 10;
const MAX_CHARS: usize = 160;

/// One line for each place in which `said` is not as `expected`, the first ones.
pub(super) fn differences(expected: &Value, said: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(expected, said, "", &mut found);
    let more = found.len().saturating_sub(MAX_TOLD);
    found.truncate(MAX_TOLD);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    found
}

fn compare(expected: &Value, said: &Value, path: &str, found: &mut Vec<String>) {
    match (expected, said) {
        (Value::Object(wanted), Value::Object(given)) => {
            let new = given.keys().filter(|key| !wanted.contains_key(*key));
            for key in wanted.keys().chain(new) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                place(wanted.get(key), given.get(key), &path, found);
            }
        }
        (Value::Array(wanted), Value::Array(given)) => {
            for at in 0..wanted.len().max(given.len()) {
                place(wanted.get(at), given.get(at), &format!("{path}[{at}]"), found);
            }
        }
        _ if expected == said => {}
        _ => found.push(format!("{path}: expected {}, is {}", short(expected), short(said))),
    }
}

fn place(wanted: Option<&Value>, given: Option<&Value>, path: &str, found: &mut Vec<String>) {
    match (wanted, given) {
        (Some(wanted), Some(given)) => compare(wanted, given, path, found),
        (Some(wanted), None) => found.push(format!("{path}: expected {}, is missing", short(wanted))),
        (None, Some(given)) => found.push(format!("{path}: not expected, is {}", short(given))),
        (None, None) => {}
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_each_place_that_differs_and_no_other() {
        let (expected, said) = (json!({"a": [1, 2], "b": {"c": true}}), json!({"a": [1, 3, 4], "d": "x"}));
        let told = ["a[1]: expected 2, is 3", "a[2]: not expected, is 4", "b: expected {\"c\":true}, is missing"];
        assert_eq!(differences(&expected, &said)[..3], told);
        assert_eq!(differences(&expected, &said)[3], "d: not expected, is \"x\"");
        assert!(differences(&said, &said).is_empty());
    }

    #[test]
    fn tells_the_first_ones_and_how_many_more() {
        let list = |of: u32| json!((0..30).map(|at| at * of).collect::<Vec<_>>());
        let told = differences(&list(1), &list(2));
        assert_eq!((told.len(), told.last().unwrap().as_str()), (MAX_TOLD + 1, "and 19 more"));
        let long = differences(&json!("é".repeat(1000)), &json!(1));
        assert!(long[0].chars().count() < MAX_CHARS + 40, "{long:?}");
    }
}
