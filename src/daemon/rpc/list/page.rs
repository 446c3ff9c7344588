//! Pages and their tokens. Key types: [`Query`], [`Window`].

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::model::SpecError;

/// Resources of a page if the client does not say.
const DEFAULT_LEN: usize = 100;
/// Resources of a page at most, whatever the client says.
const MAX_LEN: usize = 1000;
/// Bytes of a page after which it ends, whatever is left: well below the longest response.
const MAX_BYTES: usize = 4 << 20;
/// Longest token, in bytes: a name and a digest.
const MAX_TOKEN_LEN: usize = 512;
/// Bytes of a token's digest: enough to notice a mix-up. A token gives nobody anything that the call would not.
const DIGEST_LEN: usize = 12;

/// What a client asks of a list.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon::rpc) struct Query<'a> {
    pub(in crate::daemon::rpc) method: &'static str,
    /// Who asks.
    pub(in crate::daemon::rpc) caller: &'a str,
    pub(in crate::daemon::rpc) parent: &'a str,
    pub(in crate::daemon::rpc) filter: &'a str,
    pub(in crate::daemon::rpc) order_by: &'a str,
    pub(in crate::daemon::rpc) page_size: i32,
    pub(in crate::daemon::rpc) page_token: &'a str,
}

/// The part of a list that is asked for.
#[derive(Debug)]
pub(in crate::daemon::rpc) struct Window {
    query: [u8; 32],
    /// Behind this name.
    after: Option<String>,
    len: usize,
    is_descending: bool,
}

impl Window {
    /// Reads size, order and token; errors name the field.
    pub(in crate::daemon::rpc) fn new(query: Query<'_>) -> Result<Self, SpecError> {
        let len = match usize::try_from(query.page_size) {
            Ok(0) => DEFAULT_LEN,
            Ok(len) => len.min(MAX_LEN),
            Err(_) => return Err(SpecError::new("page_size", format!("{} is negative", query.page_size))),
        };
        let is_descending = match query.order_by {
            "" | "name" | "name asc" => false,
            "name desc" => true,
            _ => return Err(SpecError::new("order_by", "lists are ordered by name or by name desc")),
        };
        let mut window = Self { query: digest(&query, is_descending), after: None, len, is_descending };
        if !query.page_token.is_empty() {
            window.after = Some(window.name_of(query.page_token)?);
        }
        Ok(window)
    }

    /// The page of `items`, whose names `name` gives, and the token of the next one; it is empty if there is none.
    pub(in crate::daemon::rpc) fn page<T, M: Message>(
        &self,
        items: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
        encode: impl Fn(&T) -> M,
    ) -> (Vec<M>, String) {
        let mut page = Vec::new();
        let (_, token) = self.cut(items, name, |item| {
            page.push(encode(item));
            page.last().map_or(0, Message::encoded_len)
        });
        (page, token)
    }

    /// The same of items that are encoded later, to as many bytes as `len` gives. It is called for those of the page, in
    /// their order.
    pub(in crate::daemon::rpc) fn cut<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
        mut len: impl FnMut(&T) -> usize,
    ) -> (Vec<T>, String) {
        let named = items.into_iter().map(|item| (name(&item), item));
        let mut left: Vec<_> = named.filter(|(name, _)| self.is_ahead(name)).collect();
        left.sort_by(|(a, _), (b, _)| if self.is_descending { b.cmp(a) } else { a.cmp(b) });
        let (mut page, mut bytes) = (Vec::new(), 0);
        let mut left = left.into_iter().peekable();
        while let Some((name, item)) = left.next() {
            bytes += len(&item);
            page.push(item);
            if left.peek().is_some() && (page.len() >= self.len || bytes >= MAX_BYTES) {
                return (page, self.token(&name));
            }
        }
        (page, String::new())
    }

    fn is_ahead(&self, name: &str) -> bool {
        match &self.after {
            None => true,
            Some(after) if self.is_descending => name < after.as_str(),
            Some(after) => name > after.as_str(),
        }
    }

    fn token(&self, name: &str) -> String {
        BASE64_URL_SAFE_NO_PAD.encode([&self.check(name), name.as_bytes()].concat())
    }

    fn name_of(&self, token: &str) -> Result<String, SpecError> {
        let refuse = || {
            let reason = "this token is not of this list with this filter and order for this caller; begin without one";
            SpecError::new("page_token", reason)
        };
        let bytes = (token.len() <= MAX_TOKEN_LEN).then(|| BASE64_URL_SAFE_NO_PAD.decode(token).ok()).flatten();
        let bytes = bytes.ok_or_else(refuse)?;
        let (check, name) = bytes.split_at_checked(DIGEST_LEN).ok_or_else(refuse)?;
        let name = std::str::from_utf8(name).map_err(|_| refuse())?;
        if self.check(name) == check { Ok(name.to_owned()) } else { Err(refuse()) }
    }

    fn check(&self, name: &str) -> [u8; DIGEST_LEN] {
        let digest = Sha256::new().chain_update(self.query).chain_update(name).finalize();
        let mut check = [0; DIGEST_LEN];
        check.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        check
    }
}

/// Of all that must stay the same from page to page; the size may change.
fn digest(query: &Query<'_>, is_descending: bool) -> [u8; 32] {
    let parts = [query.method, query.caller, query.parent, query.filter, if is_descending { "desc" } else { "asc" }];
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1::GetVirtualMachineRequest as Named;
    use proptest::prelude::*;

    const QUERY: Query<'_> = Query {
        method: "List",
        caller: "tenant/acme",
        parent: "",
        filter: "",
        order_by: "",
        page_size: 0,
        page_token: "",
    };

    fn page(query: Query<'_>, names: &[String]) -> (Vec<String>, String) {
        let window = Window::new(query).unwrap();
        let (page, token) = window.page(names, |name| (*name).clone(), |name| Named { name: (*name).clone() });
        (page.into_iter().map(|named| named.name).collect(), token)
    }

    proptest! {
        #[test]
        fn pages_together_are_the_list_whatever_their_size(
            names in prop::collection::btree_set("[a-c/-]{1,4}", 0..40),
            sizes in prop::collection::vec(1i32..7, 1..5),
            is_descending in any::<bool>(),
        ) {
            let mut wanted: Vec<_> = names.into_iter().collect();
            let shuffled: Vec<_> = wanted.iter().rev().cloned().collect();
            if is_descending {
                wanted.reverse();
            }
            let (mut found, mut token) = (Vec::new(), String::new());
            for size in sizes.into_iter().cycle() {
                let order_by = if is_descending { "name desc" } else { "name" };
                let (page, next) = page(Query { page_size: size, page_token: &token, order_by, ..QUERY }, &shuffled);
                prop_assert!(page.len() <= usize::try_from(size).unwrap());
                found.extend(page);
                token = next;
                if token.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn foreign_tokens_are_refused(token in "[A-Za-z0-9_-]{1,60}|\\PC{1,40}") {
            prop_assert_eq!(Window::new(Query { page_token: &token, ..QUERY }).unwrap_err().field, "page_token");
        }
    }

    #[test]
    fn a_token_is_of_one_query_and_one_caller() {
        let names: Vec<_> = (0..9).map(|n| n.to_string()).collect();
        let (_, token) = page(Query { page_size: 2, ..QUERY }, &names);
        let with = Query { page_token: &token, ..QUERY };
        assert!(Window::new(Query { page_size: 7, ..with }).is_ok());
        for other in [
            Query { caller: "tenant/globex", ..with },
            Query { parent: "tenants/acme", ..with },
            Query { filter: "state = RUNNING", ..with },
            Query { order_by: "name desc", ..with },
            Query { method: "ListPlugins", ..with },
        ] {
            assert_eq!(Window::new(other).unwrap_err().field, "page_token", "{other:?}");
        }
    }

    #[test]
    fn sizes_are_bounded_and_orders_known() {
        let names: Vec<_> = (0..2500).map(|n| format!("{n:04}")).collect();
        for (size, len) in [(0, DEFAULT_LEN), (1, 1), (i32::MAX, MAX_LEN)] {
            assert_eq!(page(Query { page_size: size, ..QUERY }, &names).0.len(), len);
        }
        assert_eq!(Window::new(Query { page_size: -1, ..QUERY }).unwrap_err().field, "page_size");
        assert_eq!(Window::new(Query { order_by: "colour", ..QUERY }).unwrap_err().field, "order_by");
        let long: Vec<_> = (0..10).map(|n| format!("{n}{}", "x".repeat(1 << 20))).collect();
        let (page, token) = page(QUERY, &long);
        assert!(page.len() < 6 && !token.is_empty());
    }
}
