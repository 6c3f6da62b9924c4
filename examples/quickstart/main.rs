//! temp
mod lexer;
fn main() {
    println!("{:?}", lexer::lex("a"));
}
