//! The documentation: its links lead somewhere, the book has every page, and the first pages stay short.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

const SUMMARY: &str = "deploy/docs/SUMMARY.md";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[track_caller]
fn assert_none(found: &[String], what_to_do: &str) {
    assert!(found.is_empty(), "\n{}\n{what_to_do}\n", found.join("\n"));
}

/// Every markdown file of the repository, as a path from its root.
fn pages() -> Vec<String> {
    fn visit(folder: &Path, pages: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                visit(&path, pages);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    let (root, mut pages) = (root(), Vec::new());
    visit(&root, &mut pages);
    let mut pages: Vec<_> =
        pages.iter().map(|page| page.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect();
    pages.sort();
    pages
}

// Markdown, as far as these pages use it.

/// The lines of a page with their numbers, without blocks of code, spans of code and comments.
fn prose(text: &str) -> Vec<(usize, String)> {
    let (mut fence, mut comment) = (None, false);
    let mut prose = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let start = line.trim_start();
        let marks = |mark: char| start.len() - start.trim_start_matches(mark).len();
        let opened = ['`', '~'].into_iter().find(|mark| marks(*mark) >= 3);
        match (fence, opened) {
            (None, Some(mark)) => fence = Some((mark, marks(mark))),
            // Only a line of the same marks, at least as many, ends a block.
            (Some((mark, count)), _) if marks(mark) >= count && start.trim_end().chars().all(|c| c == mark) => {
                fence = None;
            }
            (Some(_), _) => {}
            (None, None) => prose.push((number, without_comments(&without_code(line), &mut comment))),
        }
    }
    prose
}

/// A line without what stands between equal runs of backticks. A run without a partner is text.
fn without_code(line: &str) -> String {
    let (mut kept, mut rest) = (String::new(), line);
    while let Some(at) = rest.find('`') {
        let (before, from) = rest.split_at(at);
        let ticks = &from[..from.len() - from.trim_start_matches('`').len()];
        let inside = &from[ticks.len()..];
        kept += before;
        rest = match inside.split_once(ticks) {
            Some((_, after)) => after,
            None => inside,
        };
    }
    kept + rest
}

/// A line without comments; `inside` says whether it begins in one, and then whether it ends in one.
fn without_comments(line: &str, inside: &mut bool) -> String {
    let (mut kept, mut rest) = (String::new(), line);
    loop {
        let mark = if *inside { "-->" } else { "<!--" };
        let Some((before, after)) = rest.split_once(mark) else { break };
        if !*inside {
            kept += before;
        }
        (*inside, rest) = (!*inside, after);
    }
    if *inside { kept } else { kept + rest }
}

/// The targets of a line's links and pictures.
fn targets(line: &str) -> Vec<String> {
    let definition = line.trim_start().strip_prefix('[').and_then(|line| line.split_once("]: ")).map(|(_, to)| to);
    let inline = line.match_indices("](").map(|(at, mark)| {
        let from = &line[at + mark.len()..];
        let mut open = 1;
        let end = from.find(|c| {
            open += i32::from(c == '(') - i32::from(c == ')');
            open == 0
        });
        &from[..end.unwrap_or(from.len())]
    });
    // Behind the target may stand a title.
    let target = |text: &str| text.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']).to_owned();
    inline.chain(definition).map(target).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut seen) = (BTreeSet::new(), BTreeMap::new());
    let in_prose: BTreeSet<_> = prose(text).into_iter().map(|(number, _)| number).collect();
    for line in (1..).zip(text.lines()).filter(|(number, _)| in_prose.contains(number)).map(|(_, line)| line) {
        let heading = line.trim_start_matches('#');
        let level = line.len() - heading.len();
        if (1..=6).contains(&level) && heading.starts_with(' ') {
            let anchor = anchor(heading);
            let count: &mut usize = seen.entry(anchor.clone()).or_default();
            anchors.insert(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
            *count += 1;
        }
    }
    anchors
}

/// A heading's anchor: lower case, hyphens for spaces, no other punctuation.
fn anchor(heading: &str) -> String {
    let (mut text, mut rest) = (String::new(), heading.trim().trim_end_matches('#').trim_end());
    // Of a link in it, only the text counts.
    while let Some((before, after)) = rest.split_once("](") {
        text += before;
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text += rest;
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A link to something in the repository.
struct Link {
    page: String,
    line: usize,
    /// As it is written.
    target: String,
    /// The file, as a path from the root; `None` when it is outside of the repository.
    file: Option<String>,
    anchor: Option<String>,
}

impl Link {
    fn new(page: &str, line: usize, target: String) -> Self {
        let (path, anchor) = match target.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor.to_owned())),
            None => (target.as_str(), None),
        };
        let file = if path.is_empty() { Some(page.to_owned()) } else { resolve(page, path) };
        Self { page: page.into(), line, file, anchor, target }
    }

    /// Where it stands, what it says, and what is wrong with it.
    fn wrong(&self, why: &str) -> String {
        format!("{}:{}: {}: {why}", self.page, self.line, self.target)
    }
}

/// The path from the root that a path on a page means.
fn resolve(page: &str, path: &str) -> Option<String> {
    let mut parts: Vec<_> = Path::new(page).parent()?.iter().collect();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.iter().collect::<PathBuf>().to_str()?.to_owned())
}

/// The relative links of some pages.
fn links(pages: &[String]) -> Vec<Link> {
    // `https:`, `mailto:` and the like.
    let has_scheme = |target: &str| {
        let scheme = target.split_once(':').map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| !scheme.is_empty() && scheme.chars().all(char::is_alphanumeric))
    };
    let mut links = Vec::new();
    for page in pages {
        for (line, text) in prose(&read(page)) {
            let relative = targets(&text).into_iter().filter(|target| !has_scheme(target) && !target.is_empty());
            links.extend(relative.map(|target| Link::new(page, line, target)));
        }
    }
    links
}

/// The pages of the book.
fn book() -> Vec<String> {
    links(&[SUMMARY.into()]).into_iter().filter_map(|link| link.file).collect()
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut known = BTreeMap::new();
    let mut wrong = Vec::new();
    for link in links(&pages()) {
        let Some(file) = &link.file else {
            wrong.push(link.wrong("not a path inside the repository, relative to this page"));
            continue;
        };
        if !root().join(file).exists() {
            wrong.push(link.wrong(&format!("there is no {file}")));
        } else if let Some(anchor) = &link.anchor
            && file.ends_with(".md")
        {
            let anchors: &BTreeSet<_> = known.entry(file.clone()).or_insert_with(|| anchors(&read(file)));
            if !anchors.contains(anchor) {
                wrong.push(link.wrong(&format!("no heading of {file} has this anchor")));
            }
        }
    }
    assert_none(&wrong, "link to a file that exists, by a path relative to the page, and to one of its headings");
}

#[test]
fn the_book_has_every_page_that_is_written_for_it_or_linked_from_it() {
    let book = book();
    let unlisted = pages().into_iter().filter(|page| page.starts_with("deploy/docs/") && page != SUMMARY);
    let unlisted = unlisted.filter(|page| !book.contains(page)).map(|page| format!("{page}: not in {SUMMARY}"));
    let mut wrong: Vec<_> = unlisted.collect();
    // A page of the summary that does not exist is a broken link, which the test above reports.
    let there: Vec<_> = book.iter().filter(|page| root().join(page).is_file()).cloned().collect();
    for link in links(&there) {
        let file = link.file.as_deref().unwrap_or_default();
        if file.ends_with(".md") && !book.iter().any(|page| page == file) {
            wrong.push(link.wrong(&format!("{file} is not in {SUMMARY}")));
        } else if root().join(file).is_dir() {
            wrong.push(link.wrong("the book cannot show a folder"));
        }
    }
    assert_none(&wrong, "add the page to the summary, or link to another page, or to a file of the folder");
}

#[test]
fn the_first_pages_stay_short() {
    let long = [("README.md", 1_200), ("ARCHITECTURE.md", 2_500)].map(|(page, most)| {
        let words = read(page).split_whitespace().count();
        (words > most).then(|| format!("{page}: {words} words, at most {most}"))
    });
    let long: Vec<_> = long.into_iter().flatten().collect();
    assert_none(&long, "move details to a page of deploy/docs and link to it");
}

// What the tests above rely on.

#[test]
fn a_link_in_code_or_in_a_comment_is_none() {
    let page =
        "[a](a.md) `[b](b.md)` ``[c](`c.md)`` <!-- [d](d.md)\n[e](e.md) --> [f](f.md)\n````\n[g](g.md)\n```\n````\n";
    let found: Vec<_> =
        prose(page).iter().flat_map(|(line, text)| targets(text).into_iter().map(|to| (*line, to))).collect();
    assert_eq!(found, [(1, "a.md".to_owned()), (2, "f.md".to_owned())]);
}

#[test]
fn a_link_is_found_in_each_of_its_forms() {
    assert_eq!(
        targets("see ![p](a.png \"A title\"), [`x`](<b.md#c>) and [y](d_(e).md)"),
        ["a.png", "b.md#c", "d_(e).md"]
    );
    assert_eq!(targets("[name]: f.md"), ["f.md"]);
}

#[test]
fn a_heading_has_the_anchor_that_code_hosts_give_it() {
    let page = "# Your first match, by hand\n## `GARAGE_SEED=1` & [more](x.md) ##\n```\n# no heading\n```\n## Twice\n## Twice\n#no\n";
    let expected = ["your-first-match-by-hand", "garage_seed1--more", "twice", "twice-1"];
    assert_eq!(anchors(page), expected.map(str::to_owned).into());
}

#[test]
fn a_path_is_relative_to_its_page() {
    let resolved = |path| resolve("deploy/docs/api.md", path);
    assert_eq!(resolved("cli.md").as_deref(), Some("deploy/docs/cli.md"));
    assert_eq!(resolved("../../README.md").as_deref(), Some("README.md"));
    assert_eq!((resolved("../../../x.md"), resolved("/README.md")), (None, None));
}
