//! What the attributes and the documentation of items say: which code only tests compile, which public items are not
//! documented, and which modules in other files that concerns.

use std::collections::HashSet;

use ra_ap_syntax::{
    AstNode, AstToken, Direction, SyntaxElement, SyntaxKind::*, SyntaxNode, SyntaxToken, T, TextRange,
    TextSize, ast,
};

/// The attributes that make a function a test, by the last name of their path: `#[tokio::test]` is one.
const TESTS: [&str; 6] = ["test", "bench", "rstest", "test_case", "quickcheck", "wasm_bindgen_test"];

/// The attributes of a node, each without its brackets and without blanks. What `cfg_attr` adds is one of them, whatever its
/// condition.
fn attributes(node: &SyntaxNode) -> Vec<String> {
    let inner = node
        .children()
        .filter(|child| matches!(child.kind(), ITEM_LIST | ASSOC_ITEM_LIST | EXTERN_ITEM_LIST));
    let all = node.children().chain(inner.flat_map(|list| list.children()));
    all.filter(|child| child.kind() == ATTR).flat_map(|attribute| metas(&attribute)).collect()
}

fn metas(attribute: &SyntaxNode) -> Vec<String> {
    fn expand(meta: &str) -> Vec<String> {
        match call(meta) {
            ("cfg_attr", added) => added.into_iter().skip(1).flat_map(expand).collect(),
            _ => vec![meta.to_owned()],
        }
    }
    let tokens = attribute.descendants_with_tokens().filter_map(SyntaxElement::into_token);
    let text: String =
        tokens.filter(|token| !token.kind().is_trivia()).map(|token| token.text().to_owned()).collect();
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

/// Whether an attribute leaves an item to tests.
fn is_test(meta: &str) -> bool {
    match call(meta) {
        ("cfg", condition) => condition.iter().any(|condition| implies_test(condition)),
        (path, _) => path.rsplit("::").next().is_some_and(|name| TESTS.contains(&name)),
    }
}

/// Whether a condition holds in tests only: `all(test, unix)` does, `any(test, unix)` and `not(test)` do not.
fn implies_test(condition: &str) -> bool {
    match call(condition) {
        ("all", conditions) => conditions.into_iter().any(implies_test),
        ("any", conditions) => !conditions.is_empty() && conditions.into_iter().all(implies_test),
        (name, _) => matches!(name, "test" | "doctest"),
    }
}

fn is_hidden(meta: &str) -> bool {
    let (name, arguments) = call(meta);
    name == "doc" && arguments.contains(&"hidden")
}

/// The parts of a file that only tests compile.
pub(crate) fn test_code(nodes: &[SyntaxNode]) -> Vec<TextRange> {
    let is_attribute = |node: &&SyntaxNode| matches!(node.kind(), ATTR | TOKEN_TREE);
    let parts = nodes.iter().filter(is_attribute).filter_map(|attribute| {
        let subject = subject(attribute)?;
        metas(attribute).iter().any(|meta| is_test(meta)).then_some(subject)
    });
    parts.collect()
}

pub(crate) fn contains(parts: &[TextRange], at: TextSize) -> bool {
    parts.iter().any(|part| part.contains(at))
}

/// What an attribute is for. Below a macro an attribute is a `#` and a bracket, and what it is for ends with a semicolon or
/// a brace.
fn subject(attribute: &SyntaxNode) -> Option<TextRange> {
    let parent = attribute.parent()?;
    if attribute.kind() == TOKEN_TREE {
        let hash = attribute.prev_sibling_or_token().filter(|before| before.kind() == T![#])?;
        let ends = |next: &SyntaxElement| next.kind() == T![;] || opens(next, T!['{']);
        let end = attribute.siblings_with_tokens(Direction::Next).find(ends)?;
        return Some(hash.text_range().cover(end.text_range()));
    }
    // The attribute of an expression such as `a + b` is one of `a` in the tree.
    let start = attribute.text_range().start();
    let starts = |node: &SyntaxNode| node.kind() != SOURCE_FILE && node.text_range().start() == start;
    Some(parent.ancestors().take_while(starts).last().unwrap_or(parent).text_range())
}

/// Whether an element is a group of tokens that opens with this bracket.
pub(crate) fn opens(element: &SyntaxElement, bracket: ra_ap_syntax::SyntaxKind) -> bool {
    let first = element.as_node().filter(|node| node.kind() == TOKEN_TREE).and_then(SyntaxNode::first_token);
    first.is_some_and(|first| first.kind() == bracket)
}

/// An item that needs documentation: what it is, its name, and whether it is documented.
type PublicItem = (&'static str, SyntaxToken, bool);

/// The items that need documentation, as the compiler's `missing_docs` has it, by what is written: an item counts if it says
/// `pub`, whether or not the crate lets it be reached. `pub mod x;` does not, as its documentation may be in the other file.
pub(crate) fn public_items(nodes: &[SyntaxNode]) -> Vec<PublicItem> {
    let types = nodes.iter().filter(|node| matches!(node.kind(), STRUCT | ENUM | UNION) && !is_in_body(node));
    let names = |node: &SyntaxNode| name_of(node).map(|name| name.to_string());
    let (public, private): (Vec<_>, Vec<_>) = types.partition(|node| is_public(node));
    let mut private: HashSet<_> = private.into_iter().filter_map(names).collect();
    private.retain(|name| !public.iter().any(|node| names(node).as_ref() == Some(name)));
    let items = nodes.iter().filter_map(|node| {
        let (what, name) = (what(node)?, name_of(node)?);
        let needed =
            needs_docs(node, &private) && !is_in_body(node) && !node.ancestors().any(|node| is_exempt(&node));
        needed.then(|| (what, name, is_documented(node)))
    });
    items.collect()
}

fn what(node: &SyntaxNode) -> Option<&'static str> {
    let of_type = node.parent()?.kind() == ASSOC_ITEM_LIST;
    Some(match node.kind() {
        FN if of_type => "method",
        FN => "function",
        CONST if of_type => "associated constant",
        CONST => "constant",
        TYPE_ALIAS if of_type => "associated type",
        TYPE_ALIAS => "type alias",
        STATIC => "static",
        STRUCT => "struct",
        UNION => "union",
        ENUM => "enum",
        VARIANT => "variant",
        RECORD_FIELD => "field",
        TRAIT => "trait",
        MACRO_RULES => "macro",
        MODULE if is_inline(node) => "module",
        _ => return None,
    })
}

fn needs_docs(node: &SyntaxNode, private: &HashSet<String>) -> bool {
    let owner = node.parent().and_then(|list| list.parent());
    match owner.as_ref().map(|owner| (owner, owner.kind())) {
        Some((owner, TRAIT | ENUM)) => is_public(owner),
        Some((variant, VARIANT)) => variant.ancestors().nth(2).is_some_and(|owner| is_public(&owner)),
        Some((owner, STRUCT | UNION)) => is_public(node) && is_public(owner),
        Some((owner, IMPL)) => is_public(node) && is_of_public_type(owner, private),
        _ if node.kind() == MACRO_RULES => attributes(node).iter().any(|meta| call(meta).0 == "macro_export"),
        _ => is_public(node),
    }
}

/// Whether an implementation is a type's own, unless the file shows that the type is not public.
fn is_of_public_type(node: &SyntaxNode, private: &HashSet<String>) -> bool {
    let Some(item) = ast::Impl::cast(node.clone()).filter(|item| item.trait_().is_none()) else {
        return false;
    };
    let Some(ast::Type::PathType(path)) = item.self_ty() else { return true };
    let name = path.path().and_then(|path| path.segment()).and_then(|segment| segment.name_ref());
    !name.is_some_and(|name| private.contains(name.text().as_str()))
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

/// Whether nobody reads the documentation of an item: it is hidden, or a test.
pub(crate) fn is_exempt(node: &SyntaxNode) -> bool {
    attributes(node).iter().any(|meta| is_test(meta) || is_hidden(meta))
}

fn is_documented(node: &SyntaxNode) -> bool {
    let is_doc = |token: SyntaxToken| ast::Comment::cast(token).is_some_and(|comment| comment.is_doc());
    let inner = node.children().filter(|child| child.kind() == ITEM_LIST);
    let inside = node.children_with_tokens().chain(inner.flat_map(|list| list.children_with_tokens()));
    let before = std::iter::successors(node.first_token(), SyntaxToken::prev_token).skip(1);
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
    let mut modules = [Vec::new(), Vec::new()];
    for module in nodes.iter().filter(|node| node.kind() == MODULE && !is_inline(node) && !is_in_body(node)) {
        let test = contains(tests, module.text_range().start());
        if test || attributes(module).iter().any(|meta| is_hidden(meta)) {
            modules[usize::from(!test)].push(module_path(path, module));
        }
    }
    modules
}

fn module_path(path: &str, module: &SyntaxNode) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.trim_end_matches(".rs");
    let modules = module.ancestors().filter(|node| node.kind() == MODULE);
    let names: Vec<_> = modules.filter_map(|node| name_of(&node)).map(|name| name.to_string()).collect();
    let (name, around) = names.split_first().map_or(("", [].as_slice()), |(name, around)| (name, around));
    let named = attributes(module).into_iter().find(|meta| meta.starts_with("path="));
    let mut parts: Vec<&str> = folder.split('/').collect();
    // A path by attribute starts at the folder of the file, unless the module is in another.
    if named.is_none() || !around.is_empty() {
        parts.extend((!matches!(stem, "mod" | "lib" | "main" | "build")).then_some(stem));
        parts.extend(around.iter().rev().map(String::as_str));
    }
    let last = named.as_deref().map_or(name, |path| path.trim_start_matches("path=").trim_matches('"'));
    for part in last.trim_end_matches(".rs").split('/') {
        match part {
            ".." => parts.truncate(parts.len().saturating_sub(1)),
            part => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty() && *part != ".");
    parts.join("/").trim_end_matches("/mod").replace("r#", "")
}
