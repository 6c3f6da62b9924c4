//! What the attributes and the documentation of items say: which code only tests compile, which public items are not
//! documented, and which modules in other files that concerns.

use std::{collections::HashSet, iter::successors};

use ra_ap_syntax::{
    AstNode, AstToken, Direction, SyntaxElement, SyntaxKind, SyntaxKind::*, SyntaxNode, SyntaxToken, T,
    TextRange, ast,
};

/// The conditions and attributes that leave code to tests, by the last name of their path.
const TESTS: [&str; 7] =
    ["test", "doctest", "bench", "rstest", "test_case", "quickcheck", "wasm_bindgen_test"];

/// The attributes of a node, without brackets and blanks.
fn attributes(node: &SyntaxNode) -> Vec<String> {
    let is_list = |kind| matches!(kind, ITEM_LIST | ASSOC_ITEM_LIST | EXTERN_ITEM_LIST);
    let inner = node.children().filter(|child| is_list(child.kind())).flat_map(|list| list.children());
    let all = node.children().chain(inner).filter(|child| child.kind() == ATTR);
    all.flat_map(|attribute| metas(&attribute)).collect()
}

/// The one attribute that this is, or those that a `cfg_attr` adds, whatever its condition.
fn metas(attribute: &SyntaxNode) -> Vec<String> {
    fn expand(meta: &str) -> Vec<String> {
        match call(meta) {
            ("cfg_attr", added) => added.into_iter().skip(1).flat_map(expand).collect(),
            _ => vec![meta.to_owned()],
        }
    }
    let tokens = attribute.descendants_with_tokens().filter_map(SyntaxElement::into_token);
    let code = tokens.filter(|token| !token.kind().is_trivia());
    let text: String = code.map(|token| token.text().to_owned()).collect();
    expand(text.trim_start_matches(['#', '!', '[']).strip_suffix(']').unwrap_or_default())
}

/// Splits `all(a, b)` into its name and its arguments.
fn call(meta: &str) -> (&str, Vec<&str>) {
    let (name, arguments) = meta.split_once('(').unwrap_or((meta, ""));
    let mut depth = 0;
    let arguments = arguments.strip_suffix(')').unwrap_or(arguments).split(|next| {
        depth += i32::from(next == '(') - i32::from(next == ')');
        next == ',' && depth == 0
    });
    (name, arguments.filter(|argument| !argument.is_empty()).collect())
}

/// Whether an attribute leaves an item to tests: `cfg(all(test, unix))` does, `cfg(any(test, unix))` does not.
fn is_test(meta: &str) -> bool {
    match call(meta) {
        ("cfg" | "all", conditions) => conditions.into_iter().any(is_test),
        ("any", conditions) => !conditions.is_empty() && conditions.into_iter().all(is_test),
        (path, _) => path.rsplit("::").next().is_some_and(|name| TESTS.contains(&name)),
    }
}

fn is_hidden(meta: &str) -> bool {
    matches!(call(meta), ("doc", arguments) if arguments.contains(&"hidden"))
}

/// Whether nobody reads the documentation of an item: it is hidden, or a test.
pub(crate) fn is_exempt(node: &SyntaxNode) -> bool {
    attributes(node).iter().any(|meta| is_test(meta) || is_hidden(meta))
}

/// The parts of a file that only tests compile.
pub(crate) fn test_code(nodes: &[SyntaxNode]) -> Vec<TextRange> {
    let candidates = nodes.iter().filter(|node| matches!(node.kind(), ATTR | TOKEN_TREE));
    let of_tests = candidates.filter(|attribute| metas(attribute).iter().any(|meta| is_test(meta)));
    of_tests.filter_map(subject).collect()
}

/// What an attribute is for. Below a macro an attribute is a `#` and a bracket, and what it is for ends with a semicolon
/// or a brace.
fn subject(attribute: &SyntaxNode) -> Option<TextRange> {
    if attribute.kind() == TOKEN_TREE {
        let hash = attribute.prev_sibling_or_token().filter(|before| before.kind() == T![#])?;
        let ends = |next: &SyntaxElement| next.kind() == T![;] || opens(next, T!['{']);
        let end = attribute.siblings_with_tokens(Direction::Next).find(ends)?;
        return Some(hash.text_range().cover(end.text_range()));
    }
    // The attribute of an expression such as `a + b` is one of `a` in the tree.
    let (parent, start) = (attribute.parent()?, attribute.text_range().start());
    let starts = |node: &SyntaxNode| node.kind() != SOURCE_FILE && node.text_range().start() == start;
    Some(parent.ancestors().take_while(starts).last().unwrap_or(parent).text_range())
}

/// Whether an element is a group of tokens that opens with this bracket.
pub(crate) fn opens(element: &SyntaxElement, bracket: SyntaxKind) -> bool {
    let group = element.as_node().filter(|node| node.kind() == TOKEN_TREE);
    group.and_then(SyntaxNode::first_token).is_some_and(|first| first.kind() == bracket)
}

/// The names of the items that need documentation, and whether they have it. As in the compiler's `missing_docs`, but by
/// what is written: an item counts if it says `pub`, reachable or not. `pub mod x;` may be documented in the other file.
pub(crate) fn public_items(nodes: &[SyntaxNode]) -> Vec<(SyntaxToken, bool)> {
    let types = |public: bool| -> HashSet<String> {
        let types = nodes.iter().filter(|node| matches!(node.kind(), STRUCT | ENUM | UNION));
        let types = types.filter(|node| !is_in_body(node) && is_public(node) == public);
        types.filter_map(name_of).map(|name| name.to_string()).collect()
    };
    let private = &types(false) - &types(true);
    let items = nodes.iter().filter(|node| needs_docs(node, &private) && !is_in_body(node));
    let items = items.filter(|node| !node.ancestors().any(|node| is_exempt(&node)));
    items.filter_map(|node| Some((name_of(node)?, is_documented(node)))).collect()
}

fn needs_docs(node: &SyntaxNode, private: &HashSet<String>) -> bool {
    let owner = node.parent().and_then(|list| list.parent());
    match (node.kind(), owner.as_ref().map(|owner| (owner, owner.kind()))) {
        (FN | CONST | TYPE_ALIAS | VARIANT, Some((owner, TRAIT | ENUM))) => is_public(owner),
        (FN | CONST | TYPE_ALIAS, Some((owner, IMPL))) => {
            is_public(node) && is_of_public_type(owner, private)
        }
        (RECORD_FIELD, Some((variant, VARIANT))) => {
            variant.ancestors().nth(2).is_some_and(|node| is_public(&node))
        }
        (RECORD_FIELD, Some((owner, _))) => is_public(node) && is_public(owner),
        (MACRO_RULES, _) => attributes(node).iter().any(|meta| call(meta).0 == "macro_export"),
        (MODULE, _) => is_public(node) && is_inline(node),
        (FN | CONST | TYPE_ALIAS | STATIC | STRUCT | UNION | ENUM | TRAIT, _) => is_public(node),
        _ => false,
    }
}

/// Whether an implementation is a type's own, unless the file shows that the type is not public.
fn is_of_public_type(node: &SyntaxNode, private: &HashSet<String>) -> bool {
    let own = ast::Impl::cast(node.clone()).filter(|item| item.trait_().is_none());
    own.is_some_and(|item| {
        let Some(ast::Type::PathType(path)) = item.self_ty() else { return true };
        let name = path.path().and_then(|path| path.segment()).and_then(|segment| segment.name_ref());
        !name.is_some_and(|name| private.contains(name.text().as_str()))
    })
}

fn is_public(node: &SyntaxNode) -> bool {
    node.children().any(|child| child.kind() == VISIBILITY && child.text() == "pub")
}

fn is_inline(module: &SyntaxNode) -> bool {
    module.children().any(|child| child.kind() == ITEM_LIST)
}

fn is_in_body(node: &SyntaxNode) -> bool {
    node.ancestors().any(|node| node.kind() == BLOCK_EXPR)
}

fn is_documented(node: &SyntaxNode) -> bool {
    let is_doc = |token: SyntaxToken| ast::Comment::cast(token).is_some_and(|comment| comment.is_doc());
    let inner = node.children().filter(|child| child.kind() == ITEM_LIST);
    let inside = node.children_with_tokens().chain(inner.flat_map(|list| list.children_with_tokens()));
    let before = successors(node.first_token(), SyntaxToken::prev_token).skip(1);
    let mut before = before.take_while(|token| token.kind().is_trivia() && !token.text().starts_with("//!"));
    attributes(node).iter().any(|meta| meta.starts_with("doc="))
        || inside.filter_map(SyntaxElement::into_token).any(is_doc)
        || before.any(is_doc)
}

/// The name that a node gives to what it is.
pub(crate) fn name_of(node: &SyntaxNode) -> Option<SyntaxToken> {
    node.children().find(|child| child.kind() == NAME)?.first_token()
}

/// The modules in other files that this file leaves to tests, and those that it hides: their paths without `.rs`.
pub(crate) fn outer_modules(path: &str, nodes: &[SyntaxNode], tests: &[TextRange]) -> [Vec<String>; 2] {
    let modules = nodes.iter().filter(|node| node.kind() == MODULE && !is_inline(node) && !is_in_body(node));
    let is_of_tests = |node: &&SyntaxNode| tests.iter().any(|part| part.contains(node.text_range().start()));
    let (of_tests, others): (Vec<_>, Vec<_>) = modules.partition(is_of_tests);
    let hidden = others.into_iter().filter(|module| is_exempt(module)).collect();
    [of_tests, hidden]
        .map(|modules: Vec<_>| modules.into_iter().map(|node| module_path(path, node)).collect())
}

fn module_path(path: &str, module: &SyntaxNode) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let modules = module.ancestors().filter(|node| node.kind() == MODULE);
    let mut names: Vec<_> = modules.filter_map(|node| name_of(&node)).map(|name| name.to_string()).collect();
    let attributes = attributes(module);
    let named = attributes.iter().find_map(|meta| meta.strip_prefix("path="));
    // A path by attribute starts at the folder of the file, unless the module is in another.
    if !matches!(file, "mod.rs" | "lib.rs" | "main.rs" | "build.rs") && (named.is_none() || names.len() > 1) {
        names.push(file.trim_end_matches(".rs").to_owned());
    }
    if let (Some(path), Some(name)) = (named, names.first_mut()) {
        *name = path.trim_matches('"').trim_end_matches(".rs").to_owned();
    }
    names.push(folder.to_owned());
    names.reverse();
    let mut parts = Vec::new();
    for part in names.iter().flat_map(|name| name.split('/')).filter(|part| !matches!(*part, "" | ".")) {
        if part != ".." {
            parts.push(part)
        } else {
            let _ = parts.pop();
        }
    }
    parts.join("/").trim_end_matches("/mod").replace("r#", "")
}
