//! What do tests of programs share? How a program is started that is to be ended by signals.

use std::process::Command;

/// The command with what signals do by default, also where whoever starts it was itself started without, as by
/// `nohup`. Its inputs and outputs are not taken over.
pub fn hearing(command: &Command) -> Command {
    let mut heard = Command::new("env");
    if cfg!(target_os = "linux") {
        heard.arg("--default-signal=HUP,INT,TERM");
    }
    heard.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        heard.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => heard.env(name, value),
            None => heard.env_remove(name),
        };
    }
    heard
}
