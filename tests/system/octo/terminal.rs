//! The command line on a terminal.

use std::{fs::File, io::Read, process::Stdio};

use nix::pty::{Winsize, openpty};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use super::world::{LONG, World, task_in};

/// The program on a terminal of so many columns, and what it has written there.
struct Terminal {
    child: Child,
    written: watch::Receiver<String>,
}

impl Terminal {
    fn start(mut command: Command, columns: u16) -> Self {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(&size, None).unwrap();
        let end = || Stdio::from(terminal.slave.try_clone().unwrap());
        command.stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        drop((command, terminal.slave));
        let mut master = File::from(terminal.master);
        let (writing, written) = watch::channel(String::new());
        tokio::task::spawn_blocking(move || {
            let (mut read, mut piece) = (Vec::new(), [0; 4096]);
            // The other end is closed: an error on Linux, and the end of the file elsewhere.
            while let Ok(bytes @ 1..) = master.read(&mut piece) {
                read.extend_from_slice(&piece[..bytes]);
                writing.send_replace(String::from_utf8_lossy(&read).into_owned());
            }
        });
        Self { child, written }
    }

    /// Waits until it has written this text.
    async fn writes(&mut self, text: &str) {
        let writing = self.written.wait_for(|written| written.contains(text));
        let is_written = timeout(LONG, writing).await.is_ok_and(|waited| waited.is_ok());
        assert!(is_written, "{text:?} is not in {:?}", *self.written.borrow());
    }

    /// What it has written at its end.
    async fn ends(mut self) -> String {
        let ended = timeout(LONG, self.child.wait()).await.expect("it ends").unwrap();
        while self.written.changed().await.is_ok() {}
        let written = self.written.borrow().clone();
        assert!(ended.success(), "{written}");
        written
    }
}

/// What the program writes on a terminal, with these variables.
async fn on_terminal(world: &World, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = world.octo(arguments);
    command.env("TERM", "xterm").envs(variables.iter().copied());
    Terminal::start(command, 100).ends().await
}

#[tokio::test(flavor = "multi_thread")]
async fn color_and_a_bar_are_for_terminals_that_want_them() {
    let world = World::start().await;
    let submit = ["submit", "story.tell", r#"{"about":"an octopus"}"#];
    let done = on_terminal(&world, &submit, &[]).await;
    assert!(done.contains("50%") && done.contains('\u{1b}'), "a bar: {done:?}");
    // The bar is gone when the words arrive.
    assert!(done.ends_with("Once an octopus\r\n"), "{done:?}");
    let listed = on_terminal(&world, &["list"], &[]).await;
    assert!(listed.contains("\u{1b}[32mcompleted "), "{listed:?}");
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let listed = on_terminal(&world, &["list"], &[(variable, value)]).await;
        assert!(!listed.contains('\u{1b}') && listed.contains("completed "), "{listed:?}");
    }
    let json = on_terminal(&world, &["submit", "--json", "a crab"], &[]).await;
    assert!(!json.contains('\u{1b}'), "{json:?}");
    let piped = world.run(&["submit", "a crab"]).await;
    assert!(!piped.out.contains('\u{1b}') && !piped.err.contains('\u{1b}'), "{piped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_runs_again_begins_its_output_anew() {
    let mut world = World::start().await;
    let mut command = world.octo(&["submit", "story.tell", r#"{"about":"gate"}"#]);
    command.env("TERM", "dumb");
    let mut terminal = Terminal::start(command, 100);
    terminal.writes("Once ").await;
    world.stop().await;
    terminal.writes("trying again for 60 s").await;
    world.start_again().await;
    world.open_gate();
    let text = terminal.ends().await;
    let notes = "the task runs again: its output begins anew\r\n";
    let (before, after) = text.split_once(notes).unwrap_or_else(|| panic!("{text:?}"));
    assert!(before.ends_with("\r\n") && before.matches("Once ").count() == 1, "{text:?}");
    assert!(after.ends_with("Once gate\r\n") && after.matches("Once ").count() == 1, "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_end_at_the_edge_of_the_terminal() {
    let world = World::start().await;
    let long = format!("a crab with {} legs", "very ".repeat(20));
    let id = task_in(&world.run(&["submit", &long]).await.err);
    for columns in [100, 60, 30] {
        for command in [&["list", "--limit", "1"][..], &["watch", &id]] {
            let mut octo = world.octo(command);
            octo.env("TERM", "dumb");
            let written = Terminal::start(octo, columns).ends().await;
            let first = written.lines().next().unwrap();
            assert_eq!(first.chars().count(), usize::from(columns), "{written:?}");
            assert!(first.starts_with(&id) && first.ends_with('…'), "{written:?}");
            assert!(
                columns < 100 || first.contains("task.run"),
                "the goal is the first that is lost: {written:?}"
            );
        }
    }
    // Two columns each.
    world.run(&["submit", "-q", &"蟹".repeat(50)]).await;
    for columns in [100, 60, 30] {
        let mut octo = world.octo(&["list", "--limit", "1"]);
        octo.env("TERM", "dumb");
        let written = Terminal::start(octo, columns).ends().await;
        let wide = written.matches('蟹').count();
        assert!(written.trim_end().chars().count() + wide <= usize::from(columns), "{written:?}");
        assert!(columns < 100 || wide > 5, "{written:?}");
    }
    let whole = world.run(&["list", "--limit", "4"]).await;
    assert!(whole.out.contains(&long) && !whole.out.contains('…'), "{whole:?}");
}
