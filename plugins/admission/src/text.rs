//! Lists in denials, which the host takes up to 512 bytes.

/// Most bytes of a list.
const MAX_LIST_BYTES: usize = 128;

/// The items with commas between them; those that do not fit are three dots.
pub(crate) fn listed(items: &[String]) -> String {
    let mut list = String::new();
    for item in items {
        let comma = if list.is_empty() { "" } else { ", " };
        if list.len() + comma.len() + item.len() > MAX_LIST_BYTES {
            return list + comma + "...";
        }
        list = list + comma + item;
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_between_items() {
        let list = |items: &[&str]| listed(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
        assert_eq!(list(&["a", "b/"]), "a, b/");
        assert_eq!(list(&["a", &"b".repeat(126), "c"]), "a, ...");
        assert_eq!(list(&[&"b".repeat(129)]), "...");
        assert_eq!(list(&["a", &"b".repeat(125)]).len(), 128);
    }
}
