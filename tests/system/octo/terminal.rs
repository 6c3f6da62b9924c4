//! The command line on a terminal.

use std::{fs::File, io::Read, process::Stdio};

use nix::pty::{Winsize, openpty};

use super::world::World;

/// What the program writes on a terminal, with these variables.
async fn on_terminal(world: &World, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    let end = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut command = world.octo(arguments);
    command.env("TERM", "xterm").envs(variables.iter().copied()).stdout(end()).stderr(end());
    let mut child = command.spawn().unwrap();
    drop((command, terminal.slave));
    let mut master = File::from(terminal.master);
    let reading = tokio::task::spawn_blocking(move || {
        let (mut read, mut piece) = (Vec::new(), [0; 4096]);
        // The other end is closed: an error on Linux, and the end of the file elsewhere.
        while let Ok(bytes @ 1..) = master.read(&mut piece) {
            read.extend_from_slice(&piece[..bytes]);
        }
        String::from_utf8(read).unwrap()
    });
    assert!(child.wait().await.unwrap().success());
    reading.await.unwrap()
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
    let long = format!("a crab with {} legs", "very ".repeat(20));
    world.run(&["submit", "-q", &long]).await;
    let listed = on_terminal(&world, &["list", "--limit", "1"], &[("NO_COLOR", "1")]).await;
    let line = listed.trim_end();
    assert_eq!((line.chars().count(), line.ends_with('…')), (100, true), "cut at the edge: {listed:?}");
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let listed = on_terminal(&world, &["list"], &[(variable, value)]).await;
        assert!(!listed.contains('\u{1b}') && listed.contains("completed "), "{listed:?}");
    }
    let json = on_terminal(&world, &["submit", "--json", "a crab"], &[]).await;
    assert!(!json.contains('\u{1b}'), "{json:?}");
    let piped = world.run(&["submit", "a crab"]).await;
    assert!(!piped.out.contains('\u{1b}') && !piped.err.contains('\u{1b}'), "{piped:?}");
}
