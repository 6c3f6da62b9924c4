//! temp
mod finding;
mod judge;
mod lexer;
fn main() {
    for path in std::env::args().skip(1) {
        let start = std::time::Instant::now();
        let report = judge::judge(&path, &std::fs::read_to_string(&path).unwrap());
        println!("{} {:?} {report:?}", finding::Rule::ALL[0], start.elapsed());
    }
}
