/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Columns as wide as their widest cell. Widths count code points, which is right for the names
 * that models have; wide glyphs only shift a column. One thread.
 */
#include <errno.h>
#include <string.h>

#include "base/memory.h"
#include "table.h"

void table_init(struct table *table, unsigned n_columns, const char *align)
{
	*table = (struct table){ .n_columns = n_columns, .align = align };
}

void table_deinit(struct table *table)
{
	for (size_t i = 0; i < table->n_cells; i++)
		memory_free(table->cells[i]);
	table->cells = memory_free(table->cells);
	table->n_cells = table->capacity = 0;
}

int table_row(struct table *table, const char *const *cells)
{
	void *array = table->cells;
	int r = memory_grow(&array, &table->capacity, table->n_cells,
			    table->n_cells + table->n_columns, sizeof(char *));

	table->cells = array;
	if (r)
		return r;
	for (unsigned i = 0; i < table->n_columns; i++) {
		char *copy = memory_strdup(cells[i]);

		if (!copy)
			return -ENOMEM;
		table->cells[table->n_cells++] = copy;
	}
	return 0;
}

static size_t cell_width(const char *cell)
{
	size_t n = 0;

	for (; *cell; cell++)
		n += (*cell & 0xc0) != 0x80;
	return n;
}

static void put_cell(FILE *file, const char *cell)
{
	for (; *cell; cell++)
		fputc((unsigned char)*cell < 0x20 || *cell == 0x7f ? '?' : *cell, file);
}

void table_print(const struct table *table, FILE *file)
{
	size_t widths[TABLE_MAX_COLUMNS] = { 0 };

	for (size_t i = 0; i < table->n_cells; i++) {
		size_t w = cell_width(table->cells[i]);

		if (w > widths[i % table->n_columns])
			widths[i % table->n_columns] = w;
	}
	for (size_t i = 0; i < table->n_cells; i++) {
		unsigned column = i % table->n_columns;
		int pad = (int)(widths[column] - cell_width(table->cells[i]));
		bool last = column + 1 == table->n_columns;

		if (table->align[column] == 'r')
			fprintf(file, "%*s", pad, "");
		put_cell(file, table->cells[i]);
		if (table->align[column] == 'l' && !last)
			fprintf(file, "%*s", pad, "");
		fputs(last ? "\n" : "  ", file);
	}
}

const char *table_bytes(uint64_t n_bytes, char ret_text[24])
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB" };
	double value = (double)n_bytes / 1024;
	unsigned unit = 0;

	if (n_bytes < 1024) {
		snprintf(ret_text, 24, "%u B", (unsigned)n_bytes);
		return ret_text;
	}
	for (; value >= 1023.95 && unit < 4; unit++)
		value /= 1024;
	snprintf(ret_text, 24, "%.1f %s", value, units[unit]);
	return ret_text;
}

const char *table_ratio(uint64_t n_bytes, uint64_t stored_bytes, char ret_text[24])
{
	if (stored_bytes)
		snprintf(ret_text, 24, "%.2f", (double)n_bytes / (double)stored_bytes);
	else
		snprintf(ret_text, 24, "-");
	return ret_text;
}
