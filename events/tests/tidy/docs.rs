//! Rules for the documentation: no link is broken, the book contains every page, and the first pages are short.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use super::{assert_none, read, root, walk};

const SUMMARY: &str = "deploy/docs/SUMMARY.md";

/// Every Markdown file of the repository, as a path relative to the root.
fn pages() -> Vec<String> {
    walk().into_iter().filter(|file| file.ends_with(".md")).collect()
}

// A parser for the parts of Markdown that these pages use.

/// The lines of a page with their numbers, without code blocks, code spans and comments.
fn prose(text: &str) -> Vec<(usize, String)> {
    let (mut fence, mut comment) = (None, false);
    let mut prose = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let start = line.trim_start();
        let marks = |mark: char| start.len() - start.trim_start_matches(mark).len();
        let opened = ['`', '~'].into_iter().find(|mark| marks(*mark) >= 3);
        match (fence, opened) {
            (None, Some(mark)) => fence = Some((mark, marks(mark))),
            // A block ends with a line of the same marks. The line has at least as many marks as the first line of the
            // block.
            (Some((mark, count)), _) if marks(mark) >= count && start.trim_end().chars().all(|c| c == mark) => {
                fence = None;
            }
            (Some(_), _) => {}
            (None, None) => prose.push((number, without_comments(&without_code(line), &mut comment))),
        }
    }
    prose
}

/// A line without its code spans. A code span begins and ends with the same number of backticks. Backticks without such
/// an end are text.
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

/// A line without comments. `inside` says whether the line begins inside a comment, and is set to whether it ends
/// inside a comment.
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

/// The targets of the links and images in a line.
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
    // A title may follow the target.
    let target = |text: &str| text.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']).to_owned();
    inline.chain(definition).map(target).collect()
}

/// The anchors of a page's headings. GitHub and mdBook generate the same ones.
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
    // If the heading contains a link, only the text of the link is used.
    while let Some((before, after)) = rest.split_once("](") {
        text += before;
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text += rest;
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A link to a file or folder in the repository.
struct Link {
    page: String,
    line: usize,
    /// The target as written on the page.
    target: String,
    /// The path relative to the root; `None` if the target is outside of the repository.
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

    /// The message for a broken link: its position, its target, and the reason.
    fn wrong(&self, why: &str) -> String {
        format!("{}:{}: {}: {why}", self.page, self.line, self.target)
    }
}

/// Converts a path that is relative to a page to a path that is relative to the root.
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

/// The relative links on these pages.
fn links(pages: &[String]) -> Vec<Link> {
    // A scheme, for example `https:` or `mailto:`.
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
fn every_relative_link_points_to_an_existing_file_and_heading() {
    let mut known = BTreeMap::new();
    let mut wrong = Vec::new();
    for link in links(&pages()) {
        let Some(file) = &link.file else {
            wrong.push(link.wrong("the path leaves the repository, or is not relative to this page"));
            continue;
        };
        if !root().join(file).exists() {
            wrong.push(link.wrong(&format!("{file} does not exist")));
        } else if let Some(anchor) = &link.anchor
            && file.ends_with(".md")
        {
            let anchors: &BTreeSet<_> = known.entry(file.clone()).or_insert_with(|| anchors(&read(file)));
            if !anchors.contains(anchor) {
                wrong.push(link.wrong(&format!("no heading of {file} has this anchor")));
            }
        }
    }
    assert_none(
        &wrong,
        "link to an existing file, with a path relative to the page, and to an existing heading of the file",
    );
}

#[test]
fn the_book_contains_every_page_of_the_docs_and_every_page_that_it_links_to() {
    let book = book();
    let unlisted = pages().into_iter().filter(|page| page.starts_with("deploy/docs/") && page != SUMMARY);
    let unlisted = unlisted.filter(|page| !book.contains(page)).map(|page| format!("{page}: not in {SUMMARY}"));
    let mut wrong: Vec<_> = unlisted.collect();
    // The test above reports pages of the summary that do not exist.
    let there: Vec<_> = book.iter().filter(|page| root().join(page).is_file()).cloned().collect();
    for link in links(&there) {
        let file = link.file.as_deref().unwrap_or_default();
        if file.ends_with(".md") && !book.iter().any(|page| page == file) {
            wrong.push(link.wrong(&format!("{file} is not in {SUMMARY}")));
        } else if root().join(file).is_dir() {
            wrong.push(link.wrong("the book cannot show a folder"));
        }
    }
    assert_none(
        &wrong,
        "add the page to the summary, link to a page that is in it, or link to a file instead of a folder",
    );
}

#[test]
fn the_first_pages_are_short() {
    let long = [("README.md", 1_200), ("ARCHITECTURE.md", 2_500)].map(|(page, most)| {
        let words = read(page).split_whitespace().count();
        (words > most).then(|| format!("{page}: {words} words; the limit is {most}"))
    });
    let long: Vec<_> = long.into_iter().flatten().collect();
    assert_none(&long, "move details to a page of deploy/docs and link to it");
}

// Tests of the parser.

#[test]
fn a_link_in_code_or_in_a_comment_is_ignored() {
    let page =
        "[a](a.md) `[b](b.md)` ``[c](`c.md)`` <!-- [d](d.md)\n[e](e.md) --> [f](f.md)\n````\n[g](g.md)\n```\n````\n";
    let found: Vec<_> =
        prose(page).iter().flat_map(|(line, text)| targets(text).into_iter().map(|to| (*line, to))).collect();
    assert_eq!(found, [(1, "a.md".to_owned()), (2, "f.md".to_owned())]);
}

#[test]
fn a_link_is_found_in_every_syntax() {
    assert_eq!(
        targets("see ![p](a.png \"A title\"), [`x`](<b.md#c>) and [y](d_(e).md)"),
        ["a.png", "b.md#c", "d_(e).md"]
    );
    assert_eq!(targets("[name]: f.md"), ["f.md"]);
}

#[test]
fn a_heading_has_the_same_anchor_as_on_github() {
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
