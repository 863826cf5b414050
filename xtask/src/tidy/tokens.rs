//! Rust source as tokens: which paths a file names, which macros it calls, which tests it holds.
//!
//! Comments and strings are not tokens, so what is found is code. It judges nothing.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path as written, `use` groups expanded: `use std::{fs, net}` names `std::fs` and `std::net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// The segments joined by `::`.
    pub(super) path: String,
    /// The line of its last segment.
    pub(super) line: usize,
    /// Whether it stands in code that only tests compile.
    pub(super) scope: Scope,
    /// What follows it.
    pub(super) then: Then,
}

/// Where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// In code that ships.
    Shipped,
    /// Below `#[cfg(test)]` or `#[test]`.
    Tests,
}

/// What follows a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// `!`: it is a macro call.
    Bang,
    /// Anything else.
    Other,
}

/// Every path and single identifier of a source file, attributes included.
pub(super) fn named(source: &str) -> Result<Vec<Named>> {
    let tokens: TokenStream = source.parse().map_err(|error| anyhow!("not Rust: {error}"))?;
    let mut found = Vec::new();
    walk(tokens, &[], Scope::Shipped, &mut found);
    Ok(found)
}

/// A test function and the lines it spans, from its first attribute to its closing brace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TestFunction {
    /// Its name.
    pub(super) name: String,
    /// The line of the attribute that makes it a test.
    pub(super) first_line: usize,
    /// The line of its closing brace.
    pub(super) last_line: usize,
}

/// Every test function of a source file, those inside macro calls included.
pub(super) fn tests_in(source: &str) -> Result<Vec<TestFunction>> {
    let tokens: TokenStream = source.parse().map_err(|error| anyhow!("not Rust: {error}"))?;
    let mut found = Vec::new();
    collect_tests(tokens, &mut found);
    Ok(found)
}

fn collect_tests(tokens: TokenStream, found: &mut Vec<TestFunction>) {
    let mut first_line = None;
    let mut name = None;
    let mut after_fn = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket && is_test(group.stream()) => {
                first_line = first_line.or(Some(group.span_open().start().line));
            }
            TokenTree::Group(group) => {
                if group.delimiter() == Delimiter::Brace
                    && let (Some(first_line), Some(name)) = (first_line, name.take())
                {
                    let last_line = group.span_close().end().line;
                    found.push(TestFunction { name, first_line, last_line });
                }
                if group.delimiter() == Delimiter::Brace {
                    first_line = None;
                }
                collect_tests(group.stream(), found);
            }
            TokenTree::Ident(ident) => {
                if after_fn && first_line.is_some() {
                    name = Some(ident.to_string());
                }
                after_fn = ident == "fn";
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

fn walk(tokens: TokenStream, prefix: &[String], scope: Scope, found: &mut Vec<Named>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    let mut item_scope = scope;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(_) => at = path(&tokens, at, prefix, item_scope, found),
            TokenTree::Group(group) => {
                let attribute =
                    group.delimiter() == Delimiter::Bracket && at > 0 && is_punct(&tokens[at - 1], '#');
                if attribute {
                    if marks_test(group.stream()) {
                        item_scope = Scope::Tests;
                    }
                    walk(group.stream(), &[], item_scope, found);
                } else {
                    // Inside a `use` group each entry starts from the group's prefix; elsewhere the prefix is empty.
                    let inner = if group.delimiter() == Delimiter::Brace { prefix } else { &[] };
                    walk(group.stream(), inner, item_scope, found);
                    if group.delimiter() == Delimiter::Brace {
                        item_scope = scope;
                    }
                }
                at += 1;
            }
            TokenTree::Punct(punct) => {
                if punct.as_char() == ';' {
                    item_scope = scope;
                }
                at += 1;
            }
            TokenTree::Literal(_) => at += 1,
        }
    }
}

/// Reads the path that starts at `tokens[at]`; says where it ends.
fn path(
    tokens: &[TokenTree],
    mut at: usize,
    prefix: &[String],
    scope: Scope,
    found: &mut Vec<Named>,
) -> usize {
    let mut segments = prefix.to_vec();
    let mut line = 0;
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        segments.push(ident.to_string());
        line = ident.span().start().line;
        at += 1;
        if !is_path_separator(tokens, at) {
            break;
        }
        at += 2;
        if let Some(TokenTree::Group(group)) = tokens.get(at)
            && group.delimiter() == Delimiter::Brace
        {
            walk(group.stream(), &segments, scope, found);
            return at + 1;
        }
    }
    let then = match tokens.get(at) {
        Some(token) if is_punct(token, '!') => Then::Bang,
        Some(_) | None => Then::Other,
    };
    found.push(Named { path: segments.join("::"), line, scope, then });
    at
}

fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    tokens.get(at).is_some_and(|token| is_punct(token, ':'))
        && tokens.get(at + 1).is_some_and(|token| is_punct(token, ':'))
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// Whether an attribute's content makes the item one that only tests compile: `test`, `tokio::test`, `cfg(test)`.
fn marks_test(attribute: TokenStream) -> bool {
    let text = squeezed(&attribute);
    text.starts_with("cfg(test") || text.starts_with("cfg(all(test") || is_test(attribute)
}

fn is_test(attribute: TokenStream) -> bool {
    let text = squeezed(&attribute);
    text == "test" || text.ends_with("::test") || text.starts_with("tokio::test(")
}

fn squeezed(tokens: &TokenStream) -> String {
    tokens.to_string().split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        named(source).unwrap().into_iter().map(|named| named.path).collect()
    }

    #[test]
    fn use_groups_are_expanded_and_comments_and_strings_are_not_code() {
        let found =
            paths("use std::{fs, net::{self, TcpStream}};\n// std::env\nconst X: &str = \"std::thread\";");
        for wanted in ["std::fs", "std::net::self", "std::net::TcpStream"] {
            assert!(found.iter().any(|path| path == wanted), "{wanted} not in {found:?}");
        }
        assert!(!found.iter().any(|path| path.contains("env") || path.contains("thread")), "{found:?}");
    }

    #[test]
    fn code_below_cfg_test_is_told_from_shipped_code() {
        let source = "fn a() { std::fs::read(); }\n#[cfg(test)]\nmod tests { fn b() { std::fs::write(); } }\nfn c() { std::fs::copy(); }";
        let scope = |wanted: &str| {
            named(source).unwrap().into_iter().find(|named| named.path == wanted).unwrap().scope
        };
        assert_eq!(scope("std::fs::read"), Scope::Shipped);
        assert_eq!(scope("std::fs::write"), Scope::Tests);
        assert_eq!(scope("std::fs::copy"), Scope::Shipped);
    }

    #[test]
    fn macro_calls_are_told_from_names() {
        let found = named("fn a() { todo!(); let todo = 1; }").unwrap();
        let bangs = found.iter().filter(|named| named.path == "todo" && named.then == Then::Bang).count();
        assert_eq!(bangs, 1);
    }

    #[test]
    fn lines_are_those_of_the_file() {
        let found = named("\n\nfn a() {\n  std::env::var();\n}").unwrap();
        assert_eq!(found.iter().find(|named| named.path == "std::env::var").unwrap().line, 4);
    }

    #[test]
    fn test_functions_are_found_with_their_lines_also_inside_macros() {
        let source =
            "fn a() {}\n#[test]\nfn b() {\n}\nproptest! {\n  #[test]\n  fn c(x in 0..1) {\n  }\n}\nfn d() {}";
        let found: Vec<_> =
            tests_in(source).unwrap().into_iter().map(|f| (f.name, f.first_line, f.last_line)).collect();
        assert_eq!(found, [("b".to_owned(), 2, 4), ("c".to_owned(), 6, 8)]);
    }
}
