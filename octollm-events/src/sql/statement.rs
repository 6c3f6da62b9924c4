//! Statements for both databases, from one text.

use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::{Arc, OnceLock},
};

/// A statement in the dialects of both databases, with one text:
///
/// - `$1`, `$2` … are the parameters.
/// - `{rows:id text, run int}` is a relation named `rows` with one row for each of the [`Rows`] of an execution. A type is
///   `text`, `int` or `bytes`. The first column is not null. A statement for Postgres alone may have several, each in a query of its
///   own.
/// - `{now}` is the database's time in microseconds since 1970.
/// - `{pg:…}` and `{lite:…}` are for Postgres and for SQLite alone.
///
/// SQLite plans a join from left to right where it is written as `{lite:CROSS} JOIN`.
#[derive(Debug)]
pub(crate) struct Sql {
    template: Cow<'static, str>,
    postgres: OnceLock<Arc<str>>,
    sqlite: [OnceLock<Arc<str>>; SIZES.len()],
    kinds: OnceLock<Vec<Kind>>,
    widths: OnceLock<Vec<usize>>,
}

/// The type of a column of `{rows:…}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Text,
    Bytes,
}

/// Numbers of rows that SQLite has statements for. The last rows of a statement may be empty.
const SIZES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// Most rows of one statement of SQLite.
pub(super) const MOST_ROWS: usize = SIZES[SIZES.len() - 1];

/// Microseconds since 1970. The time of the statement: an index is searched for it.
const NOW_POSTGRES: &str = "(extract(epoch from statement_timestamp()) * 1000000)::bigint";
/// SQLite reads the system's clock to the millisecond.
const NOW_SQLITE: &str = "(CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000)";

impl Sql {
    pub(crate) const fn new(template: &'static str) -> Self {
        Self::of(Cow::Borrowed(template))
    }

    pub(crate) const fn of(template: Cow<'static, str>) -> Self {
        Self {
            template,
            postgres: OnceLock::new(),
            sqlite: [const { OnceLock::new() }; SIZES.len()],
            kinds: OnceLock::new(),
            widths: OnceLock::new(),
        }
    }

    /// The types of the columns of its rows.
    pub(super) fn kinds(&self) -> &[Kind] {
        self.kinds.get_or_init(|| declared(&self.template).flat_map(columns).map(|(_, kind)| kind).collect())
    }

    /// How many columns each of its sets of rows has.
    pub(super) fn widths(&self) -> &[usize] {
        self.widths
            .get_or_init(|| declared(&self.template).map(|declared| columns(declared).count()).collect())
    }

    pub(super) fn postgres(&self) -> Arc<str> {
        self.postgres.get_or_init(|| expand(&self.template, Dialect::Postgres).into()).clone()
    }

    /// The text for so many rows, and the number of rows that it has.
    pub(super) fn sqlite(&self, rows: usize) -> (Arc<str>, usize) {
        let class = SIZES.iter().position(|size| rows <= *size).unwrap_or(SIZES.len() - 1);
        let text = self.sqlite[class]
            .get_or_init(|| expand(&self.template, Dialect::Sqlite(SIZES[class])).into())
            .clone();
        (text, SIZES[class])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Postgres,
    /// With so many rows.
    Sqlite(usize),
}

fn expand(template: &str, dialect: Dialect) -> String {
    let (mut text, mut rest) = (String::with_capacity(template.len()), template);
    let mut first = parameters(template) + 1;
    while let Some(at) = rest.find(['{', '$']) {
        text.push_str(&rest[..at]);
        if rest[at..].starts_with('$') {
            text.push(if dialect == Dialect::Postgres { '$' } else { '?' });
            rest = &rest[at + 1..];
            continue;
        }
        let end = rest[at..].find('}').map_or(rest.len(), |end| at + end);
        let (name, body) = rest[at + 1..end].split_once(':').unwrap_or((&rest[at + 1..end], ""));
        match (name, dialect) {
            ("now", Dialect::Postgres) => text.push_str(NOW_POSTGRES),
            ("now", Dialect::Sqlite(_)) => text.push_str(NOW_SQLITE),
            ("rows", _) => {
                push_rows(&mut text, body, first, dialect);
                first += columns(body).count();
            }
            ("pg", Dialect::Postgres) | ("lite", Dialect::Sqlite(_)) => {
                text.push_str(&expand(body, dialect));
            }
            _ => {}
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

/// The greatest number of a parameter.
fn parameters(template: &str) -> usize {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    template.split('$').skip(1).filter_map(digits).max().unwrap_or(0)
}

/// The columns of each `{rows:…}`.
fn declared(template: &str) -> impl Iterator<Item = &str> {
    template.split("{rows:").skip(1).map(|rest| rest.split_once('}').map_or("", |(declared, _)| declared))
}

/// The names and types of columns, as in `id text, run int`.
fn columns(text: &str) -> impl Iterator<Item = (&str, Kind)> {
    text.split(',').filter_map(|column| column.trim().split_once(' ')).map(|(name, kind)| {
        let kind = match kind {
            "int" => Kind::Int,
            "bytes" => Kind::Bytes,
            _ => Kind::Text,
        };
        (name, kind)
    })
}

/// Appends the relation `rows`, whose parameters begin with number `first`.
fn push_rows(text: &mut String, declared: &str, first: usize, dialect: Dialect) {
    let columns: Vec<_> = columns(declared).collect();
    let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    // Writing to a string does not fail.
    match dialect {
        Dialect::Postgres => {
            let array = |(at, (_, kind)): (usize, &(&str, Kind))| {
                let kind = match kind {
                    Kind::Int => "bigint",
                    Kind::Text => "text",
                    Kind::Bytes => "bytea",
                };
                format!("${}::{kind}[]", first + at)
            };
            let arrays = columns.iter().enumerate().map(array).collect::<Vec<_>>().join(", ");
            let _ = write!(text, "UNNEST({arrays}) AS rows({})", names.join(", "));
        }
        Dialect::Sqlite(rows) => {
            let named = names.iter().enumerate().map(|(at, name)| format!("column{} AS {name}", at + 1));
            let _ = write!(text, "(SELECT {} FROM (VALUES ", named.collect::<Vec<_>>().join(", "));
            for row in 0..rows {
                // The driver looks the name of each parameter up in a list of all names. Without others, these need none.
                let numbers = (0..names.len()).map(|at| match first {
                    1 => "?".to_owned(),
                    first => format!("?{}", first + row * names.len() + at),
                });
                let separator = if row == 0 { "" } else { "," };
                let _ = write!(text, "{separator}({})", numbers.collect::<Vec<_>>().join(","));
            }
            text.push_str(") WHERE column1 IS NOT NULL) AS rows");
        }
    }
}

/// A value of a parameter or of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// `NULL` of a column of [`Rows`]. A parameter is never null.
    Null,
    Int(i64),
    Text(Arc<str>),
    Bytes(Arc<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

/// A larger number than the databases have is their largest.
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value.into())
    }
}

impl From<&Arc<str>> for Value {
    fn from(value: &Arc<str>) -> Self {
        Self::Text(value.clone())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Arc::new(value))
    }
}

impl<V: Into<Value>> From<Option<V>> for Value {
    fn from(value: Option<V>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The rows of a statement with `{rows:…}`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rows {
    pub(super) columns: usize,
    /// Row by row.
    pub(super) values: Vec<Value>,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends a row. All rows have the same columns.
    pub(crate) fn push<const COLUMNS: usize>(&mut self, row: [Value; COLUMNS]) {
        self.columns = COLUMNS;
        self.values.extend(row);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len().checked_div(self.columns).unwrap_or(0)
    }

    /// The values of a column.
    pub(super) fn column(&self, at: usize) -> impl Iterator<Item = &Value> {
        self.values.iter().skip(at).step_by(self.columns.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_a_statement_of_both_databases() {
        let sql = Sql::new(
            "UPDATE t SET at = {now}, x = $2 FROM {rows:id text, n int} WHERE t.id = rows.id{lite: AND $1}{pg: AND $1 > 0}",
        );
        assert_eq!(
            &*sql.postgres(),
            format!(
                "UPDATE t SET at = {NOW_POSTGRES}, x = $2 FROM UNNEST($3::text[], $4::bigint[]) AS rows(id, n) WHERE t.id = rows.id AND $1 > 0"
            )
        );
        let (text, rows) = sql.sqlite(3);
        assert_eq!(rows, 4);
        assert_eq!(
            &*text,
            format!(
                "UPDATE t SET at = {NOW_SQLITE}, x = ?2 FROM (SELECT column1 AS id, column2 AS n FROM (VALUES \
                 (?3,?4),(?5,?6),(?7,?8),(?9,?10)) WHERE column1 IS NOT NULL) AS rows WHERE t.id = rows.id AND ?1"
            )
        );
    }

    #[test]
    fn parameters_of_rows_alone_have_no_names() {
        let sql = Sql::new("SELECT rows.n FROM {rows:id text, n int}");
        let rows = "(SELECT column1 AS id, column2 AS n FROM (VALUES (?,?),(?,?)) WHERE column1 IS NOT NULL) AS rows";
        assert_eq!(&*sql.sqlite(2).0, format!("SELECT rows.n FROM {rows}"));
    }

    #[test]
    fn rows_are_read_by_column() {
        let mut rows = Rows::new();
        rows.push([Value::from(1_i64), "a".into()]);
        rows.push([Value::from(2_i64), None::<&str>.into()]);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows.column(1).cloned().collect::<Vec<_>>(), ["a".into(), Value::Null]);
    }
}
