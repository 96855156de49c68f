//! Row counts and sizes of the tables, for capacity planning.

use sqlx::{AssertSqlSafe, MySqlPool};

use crate::error::Error;

/// The size of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub rows: u64,
    /// Size of the table and its indexes, in whole pages.
    pub bytes: u64,
}

/// Returns the size of every table, ordered by name. It scans all rows: do not use it on a database in production.
///
/// # Errors
/// See [`Error`].
pub async fn tables(pool: &MySqlPool) -> Result<Vec<Table>, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT CAST(table_name AS CHAR) FROM information_schema.tables
         WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' ORDER BY table_name",
    )
    .fetch_all(pool)
    .await?;
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        // The server reports sizes as of the last analysis.
        sqlx::query(AssertSqlSafe(format!("ANALYZE TABLE `{name}`"))).fetch_all(pool).await?;
        let count = AssertSqlSafe(format!("SELECT CAST(COUNT(*) AS UNSIGNED) FROM `{name}`"));
        let rows = sqlx::query_scalar(count).fetch_one(pool).await?;
        let bytes = sqlx::query_scalar(
            "SELECT CAST(data_length + index_length AS UNSIGNED) FROM information_schema.tables
             WHERE table_schema = DATABASE() AND table_name = ?",
        )
        .bind(&name)
        .fetch_one(pool)
        .await?;
        tables.push(Table { name, rows, bytes });
    }
    Ok(tables)
}
