/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index, read in place. Owns nothing. Getters check the one record that they return, so that
 * attaching costs the same for any number of tensors; what they do not check (uniqueness, sums,
 * hashes) is index-check.c's, once, by whoever brings the bytes in.
 */
#include "model/index.h"

#include <string.h>

#include "base/hash.h"
#include "base/message.h"
#include "base/range.h"
#include "dcmem/dcmem.h"

static const uint32_t record_bytes[CONTAINER_N_TABLES] = {
	[CONTAINER_TABLE_STRINGS] = 1,
	[CONTAINER_TABLE_TENSORS] = sizeof(struct container_tensor),
	[CONTAINER_TABLE_NAMES] = sizeof(uint32_t),
	[CONTAINER_TABLE_FORMS] = sizeof(struct container_form),
	[CONTAINER_TABLE_PAGES] = sizeof(struct container_page),
	[CONTAINER_TABLE_COMPANIONS] = sizeof(struct container_companion),
	[CONTAINER_TABLE_FILES] = sizeof(struct container_file),
	[CONTAINER_TABLE_SEGMENTS] = sizeof(struct container_segment),
	[CONTAINER_TABLE_OPTIONS] = 1,
	[CONTAINER_TABLE_HINTS] = sizeof(struct container_hint),
};

static int corrupt(const char *what, uint64_t number)
{
	return message_set(INDEX_E_CORRUPT, "index: %s (record %llu): damaged, pack the model again",
			   what, (unsigned long long)number);
}

const struct container_index *index_head(const struct index *index)
{
	return (const struct container_index *)index->base;
}

static const struct container_table *table_of(const struct index *index, unsigned table)
{
	return &index_head(index)->tables[table];
}

static const void *record_of(const struct index *index, unsigned table, uint64_t i)
{
	return index->base + table_of(index, table)->offset + i * record_bytes[table];
}

int index_init(struct index *ret_index, const void *bytes, uint64_t n_bytes)
{
	struct index index = {.base = bytes, .n_bytes = n_bytes};
	const struct container_index *head = bytes;

	if (n_bytes < sizeof(*head) || head->magic != CONTAINER_INDEX_MAGIC)
		return message_set(INDEX_E_CORRUPT, "index: no index starts here");
	if (head->version != CONTAINER_VERSION)
		return message_set(INDEX_E_UNSUPPORTED, "index: version %u, this build reads %u",
				   head->version, CONTAINER_VERSION);
	if (head->n_tables != CONTAINER_N_TABLES || head->index_bytes != n_bytes)
		return message_set(INDEX_E_CORRUPT, "index: %llu bytes expected, %llu found",
				   (unsigned long long)head->index_bytes,
				   (unsigned long long)n_bytes);
	for (unsigned i = 0; i < CONTAINER_N_TABLES; i++) {
		const struct container_table *table = &head->tables[i];

		/* Of a later version, which says by an incompat bit what must be known. */
		if (!record_bytes[i])
			continue;
		if (i == CONTAINER_TABLE_HINTS && !table->offset && !table->count)
			continue;
		if (table->offset % 64 || table->offset < sizeof(*head) ||
		    !range_fits_records(table->offset, table->count, record_bytes[i], n_bytes))
			return corrupt("table outside the index", i);
	}
	index.n_tensors = table_of(&index, CONTAINER_TABLE_TENSORS)->count;
	index.n_forms = table_of(&index, CONTAINER_TABLE_FORMS)->count;
	index.n_pages = table_of(&index, CONTAINER_TABLE_PAGES)->count;
	index.n_companions = table_of(&index, CONTAINER_TABLE_COMPANIONS)->count;
	index.n_files = table_of(&index, CONTAINER_TABLE_FILES)->count;
	index.n_segments = table_of(&index, CONTAINER_TABLE_SEGMENTS)->count;
	index.n_hints = table_of(&index, CONTAINER_TABLE_HINTS)->count;
	if (index.n_segments > CONTAINER_MAX_SEGMENTS || index.n_tensors >= UINT32_MAX ||
	    index.n_files >= UINT32_MAX)
		return corrupt("too many segments, tensors or files", index.n_segments);
	*ret_index = index;
	return 0;
}

static int string_at(const struct index *index, uint64_t offset, uint64_t n_bytes,
		     const char **ret_string)
{
	const struct container_table *table = table_of(index, CONTAINER_TABLE_STRINGS);
	const char *string;

	if (n_bytes > CONTAINER_MAX_NAME || !range_fits(offset, n_bytes + 1, table->count))
		return corrupt("name outside the strings", offset);
	string = record_of(index, CONTAINER_TABLE_STRINGS, offset);
	if (string[n_bytes] != '\0')
		return corrupt("name without an end", offset);
	*ret_string = string;
	return 0;
}

bool index_page_place(const struct container_page *page, uint64_t pages_from,
		      uint64_t stored_bytes, uint64_t *ret_offset)
{
	uint64_t at = page->offset - pages_from;

	if (page->offset < pages_from || !range_fits(at, page->stored_bytes, stored_bytes))
		return false;
	*ret_offset = at;
	return true;
}

int index_shape(const struct container_tensor *tensor, struct index_shape *ret_shape)
{
	struct index_shape shape = {.n_rows = 1, .n_cols = 1};
	uint64_t n_bytes;

	shape.element_bytes = dtype_bytes(tensor->dtype);
	if (!shape.element_bytes)
		return message_set(INDEX_E_UNSUPPORTED, "index: unknown dtype %u", tensor->dtype);
	if (tensor->n_dims > CONTAINER_MAX_DIMS)
		return corrupt("too many dimensions", tensor->n_dims);
	for (unsigned i = 0; i < tensor->n_dims; i++) {
		if (i + 1U == tensor->n_dims)
			shape.n_cols = tensor->dims[i];
		else if (!range_mul(shape.n_rows, tensor->dims[i], &shape.n_rows))
			return corrupt("shape overflows", i);
	}
	if (!range_mul(shape.n_cols, shape.element_bytes, &shape.row_bytes) ||
	    !range_mul(shape.n_rows, shape.row_bytes, &n_bytes) || n_bytes != tensor->n_bytes)
		return corrupt("shape and length differ", tensor->n_bytes);
	if (!tensor->page_bytes || tensor->page_bytes > CONTAINER_MAX_PAGE_BYTES ||
	    tensor->page_bytes % shape.element_bytes)
		return corrupt("bad page size", tensor->page_bytes);
	if (shape.row_bytes && shape.row_bytes <= tensor->page_bytes) {
		if (tensor->page_bytes % shape.row_bytes)
			return corrupt("page cuts a row", tensor->page_bytes);
		shape.rows_per_page = (uint32_t)(tensor->page_bytes / shape.row_bytes);
	}
	shape.n_pages = div_up(tensor->n_bytes, tensor->page_bytes);
	*ret_shape = shape;
	return 0;
}

uint64_t index_page_bytes(const struct container_tensor *tensor, uint64_t page)
{
	return min_u64(tensor->page_bytes, tensor->n_bytes - page * tensor->page_bytes);
}

int index_tensor(const struct index *index, uint64_t id, const struct container_tensor **ret)
{
	const struct container_tensor *tensor;
	struct index_shape shape;
	int r;

	if (id >= index->n_tensors)
		return message_set(INDEX_E_NOT_FOUND, "no tensor %llu, the model has %llu",
				   (unsigned long long)id, (unsigned long long)index->n_tensors);
	tensor = record_of(index, CONTAINER_TABLE_TENSORS, id);
	r = index_shape(tensor, &shape);
	if (r)
		return r;
	if (tensor->reserved || (tensor->flags & ~(CONTAINER_TENSOR_QUANTIZED |
						   CONTAINER_TENSOR_SHARED)))
		return message_set(INDEX_E_UNSUPPORTED, "index: unknown flags of tensor %llu",
				   (unsigned long long)id);
	for (unsigned i = tensor->n_dims; i < CONTAINER_MAX_DIMS; i++) {
		if (tensor->dims[i])
			return corrupt("unused dimension is not 0", id);
	}
	if (!range_fits(tensor->first_form, tensor->n_forms, index->n_forms) ||
	    !range_fits(tensor->first_companion, tensor->n_companions, index->n_companions) ||
	    tensor->file >= index->n_files || (tensor->n_bytes && !tensor->n_forms))
		return corrupt("tensor points outside the tables", id);
	*ret = tensor;
	return 0;
}

int index_tensor_name(const struct index *index, const struct container_tensor *tensor,
		      const char **ret_name)
{
	return string_at(index, tensor->name_offset, tensor->name_bytes, ret_name);
}

int index_name_slots(const struct index *index, const uint32_t **ret_slots, uint64_t *ret_n)
{
	const struct container_table *table = table_of(index, CONTAINER_TABLE_NAMES);

	if (table->count & (table->count - 1) || table->count <= index->n_tensors)
		return corrupt("name table has a wrong size", table->count);
	*ret_slots = record_of(index, CONTAINER_TABLE_NAMES, 0);
	*ret_n = table->count;
	return 0;
}

int index_find(const struct index *index, const char *name, uint64_t *ret_id)
{
	size_t n_bytes = strlen(name);
	const uint32_t *slots = NULL;
	uint64_t n_slots = 0, mask, at;
	int r = index_name_slots(index, &slots, &n_slots);

	if (r)
		return r;
	mask = n_slots - 1;
	at = hash_64_seeded(name, n_bytes, index_head(index)->name_seed) & mask;
	/* Hostile tables may have no empty slot: probe each one once. */
	for (uint64_t i = 0; i < n_slots; i++, at = (at + 1) & mask) {
		const struct container_tensor *tensor;
		const char *other = "";
		uint32_t slot = slots[at];

		if (slot == UINT32_MAX)
			break;
		r = index_tensor(index, slot, &tensor);
		if (r)
			return r;
		if (tensor->name_bytes != n_bytes)
			continue;
		r = index_tensor_name(index, tensor, &other);
		if (r)
			return r;
		if (memcmp(name, other, n_bytes) == 0) {
			*ret_id = slot;
			return 0;
		}
	}
	return message_set(INDEX_E_NOT_FOUND, "no tensor named '%s'", name);
}

int index_form(const struct index *index, uint64_t form, const struct container_form **ret)
{
	const struct container_form *record;
	const struct container_segment *segment = NULL;
	int r;

	if (form >= index->n_forms)
		return corrupt("no such form", form);
	record = record_of(index, CONTAINER_TABLE_FORMS, form);
	if (record->reserved || (record->flags & ~CONTAINER_FORM_RAW))
		return message_set(INDEX_E_UNSUPPORTED, "index: unknown flags of form %llu",
				   (unsigned long long)form);
	r = index_segment(index, record->segment, &segment);
	if (r)
		return r;
	if (!range_fits(record->offset, record->stored_bytes, segment->n_bytes) ||
	    !range_fits(record->page_record, record->n_pages, index->n_pages))
		return corrupt("form points outside its segment or the pages", form);
	*ret = record;
	return 0;
}

int index_pages(const struct index *index, uint64_t first, uint64_t count,
		const struct container_page **ret)
{
	if (!range_fits(first, count, index->n_pages))
		return corrupt("no such page", first);
	*ret = record_of(index, CONTAINER_TABLE_PAGES, first);
	return 0;
}

int index_page(const struct index *index, uint64_t page, const struct container_page **ret)
{
	return index_pages(index, page, 1, ret);
}

int index_companion(const struct index *index, uint64_t companion,
		    const struct container_companion **ret)
{
	const struct container_companion *record;

	if (companion >= index->n_companions)
		return corrupt("no such companion", companion);
	record = record_of(index, CONTAINER_TABLE_COMPANIONS, companion);
	if (record->tensor >= index->n_tensors || record->companion >= index->n_tensors ||
	    record->axis < -1 || record->axis > 1)
		return corrupt("companion points outside the tables", companion);
	if (record->scheme != 1 || record->relation < DCMEM_REL_SCALE ||
	    record->relation > DCMEM_REL_OUTLIER_INDEX || record->reserved)
		return message_set(INDEX_E_UNSUPPORTED,
				   "index: scheme %u, relation %u: a newer quantization, update dcmem",
				   record->scheme, record->relation);
	*ret = record;
	return 0;
}

int index_file(const struct index *index, uint64_t file, const struct container_file **ret)
{
	const struct container_file *record;

	if (file >= index->n_files)
		return message_set(INDEX_E_NOT_FOUND, "no file %llu", (unsigned long long)file);
	record = record_of(index, CONTAINER_TABLE_FILES, file);
	if (record->kind != CONTAINER_FILE_VERBATIM && record->kind != CONTAINER_FILE_SAFETENSORS)
		return message_set(INDEX_E_UNSUPPORTED, "index: file of unknown kind %u",
				   record->kind);
	*ret = record;
	return 0;
}

int index_file_name(const struct index *index, const struct container_file *file,
		    const char **ret_name)
{
	return string_at(index, file->name_offset, file->name_bytes, ret_name);
}

int index_segment(const struct index *index, uint64_t segment,
		  const struct container_segment **ret)
{
	if (segment >= index->n_segments)
		return corrupt("no such segment", segment);
	*ret = record_of(index, CONTAINER_TABLE_SEGMENTS, segment);
	return 0;
}

int index_hint(const struct index *index, uint64_t hint, const struct container_hint **ret)
{
	static const uint8_t zeros[sizeof(((struct container_hint *)NULL)->reserved)];
	const struct container_tensor *tensor;
	const struct container_hint *record;
	int r;

	if (hint >= index->n_hints)
		return corrupt("no such hint", hint);
	record = record_of(index, CONTAINER_TABLE_HINTS, hint);
	if (record->tensor >= index->n_tensors)
		return corrupt("hint of no tensor", hint);
	r = index_tensor(index, record->tensor, &tensor);
	if (r)
		return r;
	/* Codec 0 is raw. */
	if (record->stored_bytes > tensor->n_bytes ||
	    (record->codec == 0 && record->stored_bytes != tensor->n_bytes) ||
	    memcmp(record->reserved, zeros, sizeof(zeros)) != 0)
		return corrupt("hint of an impossible size", hint);
	*ret = record;
	return 0;
}

int index_hints(const struct index *index, uint64_t tensor, const struct container_hint **ret_hints,
		unsigned *ret_n)
{
	const struct container_hint *hints = record_of(index, CONTAINER_TABLE_HINTS, 0), *hint;
	uint64_t low = 0, high = index->n_hints;
	unsigned n = 0;

	if (tensor >= index->n_tensors)
		return message_set(INDEX_E_NOT_FOUND, "no tensor %llu, the model has %llu",
				   (unsigned long long)tensor, (unsigned long long)index->n_tensors);
	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (hints[middle].tensor < tensor)
			low = middle + 1;
		else
			high = middle;
	}
	while (n < CONTAINER_MAX_HINTS && n < index->n_hints - low && hints[low + n].tensor == tensor) {
		int r = index_hint(index, low + n, &hint);

		if (r)
			return r;
		n++;
	}
	*ret_hints = hints + low;
	*ret_n = n;
	return 0;
}
