//! Commands and calls of scripts, as the server reads them.

use std::sync::{LazyLock, OnceLock};

/// A command with its arguments.
#[derive(Debug, Clone)]
pub(super) struct Command {
    count: usize,
    args: Vec<u8>,
}

impl Command {
    pub(super) fn new(name: &str) -> Self {
        Self::with_capacity(name, 0)
    }

    /// The same, with room for so many bytes of arguments.
    pub(super) fn with_capacity(name: &str, bytes: usize) -> Self {
        let mut command = Self { count: 0, args: Vec::with_capacity(name.len() + bytes + 16) };
        command.arg(name);
        command
    }

    pub(super) fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        bulk(&mut self.args, arg.as_ref());
        self.count += 1;
        self
    }

    /// Appends the command to what is sent.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.write_after(&[], out);
    }

    /// The same, with words before its own.
    fn write_after(&self, words: &[&str], out: &mut Vec<u8>) {
        head(out, b'*', words.len() + self.count);
        for word in words {
            bulk(out, word.as_bytes());
        }
        out.extend_from_slice(&self.args);
    }
}

fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends a kind, a number and the end of the line.
fn head(out: &mut Vec<u8>, kind: u8, mut number: usize) {
    let mut line = [kind; 24];
    line[22..].copy_from_slice(b"\r\n");
    let mut at = 22;
    loop {
        at -= 1;
        line[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    // What is before the digits is the kind.
    out.extend_from_slice(&line[at - 1..]);
}

/// A script, which servers have under its hash.
pub(super) struct Script {
    body: String,
    /// As the first server said that was given the script.
    hash: OnceLock<String>,
}

/// Scripts that are made when they are first called.
pub(super) type LazyScript = LazyLock<Script>;

impl Script {
    pub(super) fn new(body: impl Into<String>) -> Self {
        Self { body: body.into(), hash: OnceLock::new() }
    }

    /// A call with these keys.
    pub(super) fn call(&self, keys: &[impl AsRef<[u8]>]) -> Call<'_> {
        let mut args = Command::new(&keys.len().to_string());
        for key in keys {
            args.arg(key);
        }
        Call { script: self, args }
    }
}

/// A call of a script.
pub(super) struct Call<'a> {
    script: &'a Script,
    args: Command,
}

impl Call<'_> {
    pub(super) fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        self.args.arg(arg);
        self
    }

    pub(super) fn number(&mut self, number: impl ToString) -> &mut Self {
        self.arg(number.to_string())
    }

    pub(super) fn hash(&self) -> Option<&str> {
        self.script.hash.get().map(String::as_str)
    }

    /// Has a server store the script. The reply is its hash.
    pub(super) fn load(&self) -> Command {
        let mut command = Command::new("SCRIPT");
        command.arg("LOAD").arg(&self.script.body);
        command
    }

    pub(super) fn loaded(&self, hash: String) -> &str {
        self.script.hash.get_or_init(|| hash)
    }

    /// Calls the script that the server has under this hash.
    pub(super) fn write(&self, hash: &str, out: &mut Vec<u8>) {
        self.args.write_after(&["EVALSHA", hash], out);
    }

    /// Calls it with its text, which the server stores.
    pub(super) fn write_whole(&self, out: &mut Vec<u8>) {
        self.args.write_after(&["EVAL", &self.script.body], out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_its_words() {
        let mut command = Command::new("PUBLISH");
        command.arg("").arg(b"\r\n\0").arg("x".repeat(1_234));
        let mut bytes = b"before".to_vec();
        command.write(&mut bytes);
        let expected = format!(
            "before*4\r\n$7\r\nPUBLISH\r\n$0\r\n\r\n$3\r\n\r\n\0\r\n$1234\r\n{}\r\n",
            "x".repeat(1_234)
        );
        assert_eq!(bytes, expected.as_bytes());
        let mut longest = Vec::new();
        head(&mut longest, b'$', usize::MAX);
        assert_eq!(longest, format!("${}\r\n", usize::MAX).as_bytes());
    }
}
