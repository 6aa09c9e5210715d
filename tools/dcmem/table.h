/* SPDX-License-Identifier: Apache-2.0 */
/* Text in aligned columns, and bytes for people. */
#ifndef DCMEM_TABLE_H
#define DCMEM_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TABLE_MAX_COLUMNS 12

struct table {
	unsigned n_columns;
	const char *align; /* 'l' or 'r' a column */
	char **cells;	   /* owned, row after row */
	size_t n_cells, capacity;
};

void table_init(struct table *table, unsigned n_columns, const char *align);
void table_deinit(struct table *table);
/* One row: n_columns strings, copied. 0 or -ENOMEM. */
int table_row(struct table *table, const char *const *cells);
/* The first row is the heading. Control characters come out as '?'. */
void table_print(const struct table *table, FILE *file);

/* "17 B", "1.2 KiB", "61.1 MiB". Returns `ret_text`. */
const char *table_bytes(uint64_t n_bytes, char ret_text[24]);
/* "1.50", "-" where nothing is stored. Returns `ret_text`. */
const char *table_ratio(uint64_t n_bytes, uint64_t stored_bytes, char ret_text[24]);

#endif
