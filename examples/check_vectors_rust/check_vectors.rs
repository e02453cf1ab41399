//! A kernel checked against golden vectors without Python: every element of the expected result carries the error it
//! may have. What the files hold is written down in refattn/oracle/vectors/README.md.
//!
//!     refattn vectors make vectors --pack gqa --format raw      or   --shape 2x32/8x512 --tile 64 --layout BSHD --format raw
//!     rustc -O --edition 2021 check_vectors.rs && ./check_vectors vectors/*/
mod attention;
use std::{collections::HashMap, fs, path::PathBuf, process::ExitCode};

const KNOWN: [&str; 7] = ["refattn-case", "name", "function", "scale", "causal", "layout", "expected_rows"];

struct Case {
    dir: PathBuf,
    facts: HashMap<String, String>,                // "scale 0.25", "causal 1", ...
    arrays: HashMap<String, (String, Vec<usize>)>, // "array query float32 4 2 6 5 16": name, dtype, rank, sizes
}

impl Case {
    fn read(dir: PathBuf) -> Case {
        let text = fs::read_to_string(dir.join("case.txt")).unwrap_or_default();
        let (mut facts, mut arrays) = (HashMap::new(), HashMap::new());
        for (word, rest) in text.lines().filter_map(|line| line.split_once(' ')) {
            let words: Vec<&str> = rest.split(' ').collect();
            if word == "array" {
                let sizes = words[3..].iter().map(|size| size.parse().expect("a size")).collect();
                arrays.insert(words[0].to_string(), (words[1].to_string(), sizes));
            } else {
                facts.insert(word.to_string(), rest.to_string());
            }
        }
        Case { dir, facts, arrays }
    }

    fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("", |value| value)
    }

    fn layout(&self) -> &str {
        self.facts.get("layout").map_or(["HTD", "BHTD"][self.arrays["query"].1.len() - 3], |layout| layout)
    }

    /// Why this kernel cannot run the case.
    fn left_out(&self) -> Option<String> {
        let option = self.facts.keys().find(|name| !KNOWN.contains(&name.as_str()));
        let dtypes = ["query", "key", "value"].map(|name| self.arrays.get(name).map_or("", |(dtype, _)| dtype));
        let dtype = dtypes.into_iter().find(|dtype| !["float32", "bfloat16"].contains(dtype));
        let function = Some(self.fact("function")).filter(|name| *name != "attention");
        let version = Some(self.fact("refattn-case")).filter(|version| !["1", "2"].contains(version));
        let no_such = version.map(|version| format!("its version is {version}")).or(function.map(|name| format!("it is not {name:?}"))).or(option.map(|name| format!("it has no {name}")));
        no_such.or(dtype.map(|name| format!("it reads no {name}")))
    }

    fn size(&self, name: &str, axis: char) -> usize {
        self.layout().find(axis).map_or(1, |at| self.arrays[name].1[at])
    }

    fn load<const N: usize, T>(&self, name: &str, number: fn([u8; N]) -> T) -> Vec<T> {
        let bytes = fs::read(self.dir.join(format!("{name}.bin"))).unwrap_or_default();
        bytes.chunks_exact(N).map(|chunk| number(chunk.try_into().expect("N bytes"))).collect()
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        match self.arrays[name].0.as_str() {
            "float32" => self.load(name, f32::from_le_bytes),
            _ => self.load(name, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)), // bfloat16
        }
    }

    /// How many elements of a result are beyond their bounds; prints the first and the worst. `axis` counts the rows.
    fn beyond(&self, result: &str, got: &[f32], axis: usize, rows: usize) -> usize {
        let sizes = &self.arrays[&format!("expected_{result}")].1;
        let expected = self.load(&format!("expected_{result}"), f64::from_le_bytes);
        let bound = self.load(&format!("{result}_bound"), f64::from_le_bytes);
        let picked = self.load("expected_rows", i64::from_le_bytes); // empty: all rows are judged
        let (judged, inner) = (sizes[axis], sizes[axis + 1..].iter().product::<usize>());
        let row = |r: usize| picked.get(r).map_or(r, |row| *row as usize);
        let place = |n: usize| (n / inner / judged * rows + row(n / inner % judged)) * inner + n % inner; // in the whole result
        let right = |x: f64, n: usize| x == expected[n] || (x - expected[n]).abs() <= bound[n] || (x.is_nan() && expected[n].is_nan());
        let wrong: Vec<usize> = (0..expected.len()).filter(|&n| !right(f64::from(got[place(n)]), n)).collect();
        let times = |n: usize| ((f64::from(got[place(n)]) - expected[n]).abs() / bound[n]).min(f64::INFINITY); // NaN counts as infinite
        let worst = wrong.iter().copied().max_by(|a, b| times(*a).total_cmp(&times(*b)));
        for n in wrong.first().copied().into_iter().chain(worst) {
            let (mut left, mut at) = (place(n), vec![]);
            for size in (0..sizes.len()).rev().map(|a| if a == axis { rows } else { sizes[a] }) {
                at.insert(0, left % size);
                left /= size;
            }
            println!("  {result}{at:?}: got {:e}, expected {:e}, bound {:e}", got[place(n)], expected[n], bound[n]);
        }
        if !wrong.is_empty() {
            println!("  {result}: {} of {} elements differ; above the first and the worst", wrong.len(), expected.len());
        }
        wrong.len()
    }

    fn verdict(&self) -> String {
        let (query, key) = (|axis| self.size("query", axis), |axis| self.size("key", axis));
        let n = attention::Sizes {
            batch: query('B'), heads: query('H'), kv_heads: key('H'), rows: query('T'), keys: key('T'), head_dim: query('D'),
            v_head_dim: self.size("value", 'D'), heads_last: self.layout().find('T') < self.layout().find('H'),
        };
        let (q, k, v) = (self.numbers("query"), self.numbers("key"), self.numbers("value"));
        let scale = self.fact("scale").parse().expect("a scale");
        let (output, lse) = attention::attention(&n, &q, &k, &v, scale, self.fact("causal") == "1");
        let (rows_axis, last) = (self.layout().find('T').expect("rows"), self.arrays["expected_lse"].1.len() - 1);
        let wrong = self.beyond("output", &output, rows_axis, n.rows) + self.beyond("lse", &lse, last, n.rows);
        if wrong == 0 { "right" } else { "WRONG" }.to_string()
    }
}

fn main() -> ExitCode {
    let (mut right, mut wrong) = (0, 0);
    for case in std::env::args().skip(1).map(|dir| Case::read(PathBuf::from(dir))) {
        let verdict = case.left_out().map_or_else(|| case.verdict(), |why| format!("left out: {why}"));
        println!("{} {verdict}", case.fact("name"));
        right += usize::from(verdict == "right");
        wrong += usize::from(verdict == "WRONG");
    }
    println!("{right} of {} cases are right", right + wrong);
    if wrong == 0 && right > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
