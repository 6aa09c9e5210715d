/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything about an index that getters leave out, checked once by whoever brings the bytes in:
 * loading, opening in-process, verify. Whatever the bytes, the time is that of sorting its records:
 * each form is checked for one tensor, each page for one form, and names are told apart by a hash
 * whose seed the writer could not know.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "model/index.h"

/* Where something lies: a form in a segment, a blob in the file (segment UINT64_MAX). */
struct extent {
	uint64_t segment, start, end;
};

struct name {
	uint64_t hash, id;
};

struct check {
	const struct index *index;
	uint64_t *owner;    /* of each form: its first tensor + 1 */
	struct name *names; /* of tensors */
	struct extent *extents; /* of forms, then of blobs */
	uint64_t n_extents;
	uint64_t n_pages; /* of the forms seen so far */
	uint64_t segments_end;
	uint64_t seed;
};

static int damaged(const char *what, const char *name)
{
	return message_set(INDEX_E_CORRUPT, "index: tensor or file '%.200s': %s", name, what);
}

/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, at most U+10FFFF, no NUL. */
static bool utf8_is_valid(const char *text, size_t n_bytes)
{
	const uint8_t *p = (const uint8_t *)text, *end = p + n_bytes;

	while (p < end) {
		uint32_t c = *p++, least;
		unsigned more;

		if (c == 0)
			return false;
		if (c < 0x80)
			continue;
		if (c >= 0xc2 && c < 0xe0) {
			more = 1, c &= 0x1f, least = 0x80;
		} else if (c >= 0xe0 && c < 0xf0) {
			more = 2, c &= 0x0f, least = 0x800;
		} else if (c >= 0xf0 && c < 0xf5) {
			more = 3, c &= 0x07, least = 0x10000;
		} else {
			return false;
		}
		if ((size_t)(end - p) < more)
			return false;
		for (; more; more--, p++) {
			if ((*p & 0xc0) != 0x80)
				return false;
			c = c << 6 | (*p & 0x3f);
		}
		if (c < least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
			return false;
	}
	return true;
}

static int check_form(const struct index *index, const struct container_tensor *tensor,
		      const struct container_form *form, const char *name)
{
	const struct container_page *pages;
	int r = index_pages(index, form->page_record, form->n_pages, &pages);
	uint64_t raw_at = form->offset, least = form->offset;

	if (r)
		return r;
	for (uint64_t i = 0; i < form->n_pages; i++) {
		const struct container_page *page = &pages[i];
		uint64_t decoded = index_page_bytes(tensor, form->first_page + i);

		if (page->reserved[0] || page->reserved[1] || page->reserved[2] ||
		    !codec_is_valid(page->codec))
			return message_set(INDEX_E_UNSUPPORTED,
					   "index: '%.200s': codec %u is unknown, update dcmem", name,
					   page->codec);
		if (page->offset < least ||
		    !range_fits(page->offset - form->offset, page->stored_bytes,
				form->stored_bytes))
			return damaged("page outside its form, or over another", name);
		least = page->offset + page->stored_bytes;
		if (page->codec == CODEC_RAW && page->stored_bytes != decoded)
			return damaged("raw page of a wrong length", name);
		if (form->flags & CONTAINER_FORM_RAW) {
			if (page->codec != CODEC_RAW || page->offset != raw_at)
				return damaged("raw form with other pages or gaps", name);
			raw_at += page->stored_bytes;
		}
	}
	return 0;
}

/* A tensor whose forms belong to an earlier one: all of them, and of the same pages. */
static int check_shared(struct check *check, const struct container_tensor *tensor, const char *name)
{
	const struct container_form *form;
	const struct container_tensor *first;
	int r = index_form(check->index, tensor->first_form, &form);

	if (r)
		return r;
	if (check->owner[tensor->first_form] == 0)
		return damaged("forms of an earlier tensor that has none", name);
	r = index_tensor(check->index, check->owner[tensor->first_form] - 1, &first);
	if (r)
		return r;
	if (first->first_form != tensor->first_form || first->n_forms != tensor->n_forms ||
	    first->n_bytes != tensor->n_bytes || first->page_bytes != tensor->page_bytes)
		return damaged("forms of a tensor of another size", name);
	return 0;
}

static int check_forms(struct check *check, uint64_t id, const struct container_tensor *tensor,
		       const char *name)
{
	struct index_shape shape;
	bool whole = tensor->n_bytes == 0;
	int r = index_shape(tensor, &shape);

	if (r)
		return r;
	if ((tensor->flags & CONTAINER_TENSOR_SHARED) && tensor->n_forms)
		return check_shared(check, tensor, name);
	for (uint64_t i = 0; i < tensor->n_forms; i++) {
		const struct container_form *form;

		r = index_form(check->index, tensor->first_form + i, &form);
		if (r)
			return r;
		if (check->owner[tensor->first_form + i])
			return damaged("form of another tensor, which it does not say", name);
		check->owner[tensor->first_form + i] = id + 1;
		if (!range_fits(form->first_page, form->n_pages, shape.n_pages))
			return damaged("form of pages that it does not have", name);
		if ((form->flags & CONTAINER_FORM_RAW) && form->offset % CONTAINER_SMALL_ALIGN)
			return damaged("raw form not aligned", name);
		if (i == 0 && form->first_page == 0 && form->n_pages == shape.n_pages)
			whole = true;
		/* Forms share no records, so those of all of them are no more than there are. */
		if (form->n_pages > check->index->n_pages - check->n_pages)
			return damaged("page records of another form", name);
		check->n_pages += form->n_pages;
		r = check_form(check->index, tensor, form, name);
		if (r)
			return r;
		check->extents[check->n_extents++] =
			(struct extent){form->segment, form->offset, form->offset + form->stored_bytes};
	}
	return whole ? 0 : damaged("its first form does not cover it", name);
}

/* As docs/container.md says of relations 1 to 3; the others are as long as they like. */
static bool companion_fits(const struct container_companion *companion,
			   const struct index_shape *shape, uint64_t n_elements)
{
	uint64_t groups;

	if (companion->axis < -1 || companion->axis > 1)
		return false;
	if (companion->relation > DCMEM_REL_INPUT_SCALE)
		return true;
	if (companion->group_size) {
		groups = div_up(shape->n_cols, companion->group_size);
		return n_elements == groups * shape->n_rows;
	}
	return n_elements == (companion->axis == 0   ? shape->n_rows
			      : companion->axis == 1 ? shape->n_cols
						     : 1);
}

static int check_companions(const struct index *index, uint64_t id,
			    const struct container_tensor *tensor, const char *name)
{
	struct index_shape shape, other_shape;
	int r = index_shape(tensor, &shape);

	for (uint64_t i = 0; r == 0 && i < tensor->n_companions; i++) {
		const struct container_companion *companion;
		const struct container_tensor *other = NULL;

		r = index_companion(index, tensor->first_companion + i, &companion);
		if (r)
			return message_prefix(r, "'%.200s'", name);
		if (companion->tensor != id || companion->companion == id)
			return damaged("companion of another tensor", name);
		r = index_tensor(index, companion->companion, &other);
		if (!r)
			r = index_shape(other, &other_shape);
		if (!r && !companion_fits(companion, &shape, other->n_bytes / other_shape.element_bytes))
			return damaged("companion that does not fit its shape", name);
	}
	return r;
}

static int check_tensor(struct check *check, uint64_t id)
{
	const struct container_tensor *tensor;
	const char *name;
	int r = index_tensor(check->index, id, &tensor);

	if (!r)
		r = index_tensor_name(check->index, tensor, &name);
	if (r)
		return r;
	if (!utf8_is_valid(name, tensor->name_bytes))
		return damaged("name is not UTF-8", name);
	check->names[id] = (struct name){
		.hash = hash_64_seeded(name, tensor->name_bytes, check->seed),
		.id = id,
	};
	r = check_forms(check, id, tensor, name);
	if (!r)
		r = check_companions(check->index, id, tensor, name);
	return r;
}

static int compare_names(const void *a, const void *b)
{
	const struct name *x = a, *y = b;

	return x->hash != y->hash ? (x->hash < y->hash ? -1 : 1) : x->id < y->id ? -1 : x->id > y->id;
}

static const char *name_of(const struct index *index, uint64_t id)
{
	const struct container_tensor *tensor;
	const char *name = "";

	if (index_tensor(index, id, &tensor) == 0)
		(void)index_tensor_name(index, tensor, &name);
	return name;
}

/* No name twice, and the name table has each tensor once, where looking for it gets to. */
static int check_names(struct check *check)
{
	const struct index *index = check->index;
	uint64_t n_slots = 0, first = 0, start = 0, n_found = 0;
	const uint32_t *slots = NULL;
	int r;

	qsort(check->names, index->n_tensors, sizeof(*check->names), compare_names);
	for (uint64_t i = 1; i < index->n_tensors; i++) {
		const struct name *name = &check->names[i];

		if (name[-1].hash == name->hash &&
		    strcmp(name_of(index, name[-1].id), name_of(index, name->id)) == 0)
			return damaged("name twice", name_of(index, name->id));
	}
	r = index_name_slots(index, &slots, &n_slots);
	if (r)
		return r;
	/* From an empty slot once round; `start` is where the run of filled slots began. */
	while (first < n_slots && slots[first] != UINT32_MAX)
		first++;
	if (first == n_slots)
		return message_set(INDEX_E_CORRUPT, "index: the name table is full");
	for (uint64_t i = 0; i < index->n_tensors; i++)
		check->names[i].id = 0; /* now: the tensor was met */
	for (uint64_t i = 0; i < n_slots; i++) {
		uint64_t at = (first + i) & (n_slots - 1), home;
		const char *name;

		if (slots[at] == UINT32_MAX) {
			start = i + 1;
			continue;
		}
		if (slots[at] >= index->n_tensors || check->names[slots[at]].id++)
			return message_set(INDEX_E_CORRUPT, "index: the name table has tensor %u twice, "
					   "or there is none", slots[at]);
		name = name_of(index, slots[at]);
		home = hash_64_seeded(name, strlen(name), index_head(index)->name_seed);
		if (((home - first) & (n_slots - 1)) < start || ((home - first) & (n_slots - 1)) > i)
			return damaged("name not where the name table should have it", name);
		n_found++;
	}
	return n_found == index->n_tensors ?
		       0 :
		       message_set(INDEX_E_CORRUPT, "index: the name table has not all tensors");
}

static int compare_extents(const void *a, const void *b)
{
	const struct extent *x = a, *y = b;

	if (x->segment != y->segment)
		return x->segment < y->segment ? -1 : 1;
	if (x->start != y->start)
		return x->start < y->start ? -1 : 1;
	return x->end < y->end ? -1 : x->end > y->end;
}

static int check_overlaps(struct check *check)
{
	qsort(check->extents, check->n_extents, sizeof(*check->extents), compare_extents);
	for (uint64_t i = 1; i < check->n_extents; i++) {
		const struct extent *extent = &check->extents[i];

		if (extent[-1].segment == extent->segment && extent[-1].end > extent->start)
			return message_set(INDEX_E_CORRUPT, "index: forms or blobs overlap at %llu",
					   (unsigned long long)extent->start);
	}
	return 0;
}

/* Relative, with no empty, "." or ".." part: restoring cannot leave its directory. */
static bool file_name_is_safe(const char *name)
{
	for (const char *part = name;; part++) {
		size_t n = strcspn(part, "/");

		if (n == 0 || (n == 1 && part[0] == '.') ||
		    (n == 2 && part[0] == '.' && part[1] == '.'))
			return false;
		part += n;
		if (*part == '\0')
			return true;
	}
}

static int check_file(struct check *check, uint64_t i)
{
	const struct index *index = check->index;
	const struct container_file *file;
	const char *name;
	int r = index_file(index, i, &file);

	if (!r)
		r = index_file_name(index, file, &name);
	if (r)
		return r;
	if (!utf8_is_valid(name, file->name_bytes) || !file_name_is_safe(name))
		return damaged("file name is not a relative path in UTF-8", name);
	if (file->blob_bytes > file->file_bytes ||
	    (file->kind == CONTAINER_FILE_VERBATIM && file->blob_bytes != file->file_bytes))
		return damaged("file of a wrong length", name);
	if (file->blob_offset < check->segments_end && file->blob_bytes)
		return damaged("blob over a segment", name);
	check->extents[check->n_extents++] = (struct extent){
		UINT64_MAX, file->blob_offset, file->blob_offset + file->blob_bytes};
	return 0;
}

static int check_segments(struct check *check)
{
	uint64_t end = sizeof(struct container_header);

	for (uint64_t i = 0; i < check->index->n_segments; i++) {
		const struct container_segment *segment;
		int r = index_segment(check->index, i, &segment);

		if (r)
			return r;
		/* In file order, so that none overlaps another. */
		if (segment->offset % CONTAINER_ALIGN || segment->n_bytes % CONTAINER_ALIGN ||
		    segment->offset < end || !range_add(segment->offset, segment->n_bytes, &end))
			return message_set(INDEX_E_CORRUPT, "index: segment %llu overlaps or wraps",
					   (unsigned long long)i);
	}
	check->segments_end = end;
	return 0;
}

/* By tensor; of one tensor each smaller than the last and no faster: so none twice, and no loops. */
static int check_hints(const struct index *index)
{
	const struct container_hint *last = NULL;
	unsigned n = 0;

	for (uint64_t i = 0; i < index->n_hints; i++) {
		const struct container_hint *hint = NULL;
		int r = index_hint(index, i, &hint);

		if (r)
			return r;
		n = last && last->tensor == hint->tensor ? n + 1 : 1;
		if (n > CONTAINER_MAX_HINTS || (last && last->tensor > hint->tensor) ||
		    (n > 1 && (hint->stored_bytes >= last->stored_bytes ||
			       hint->decode_ps < last->decode_ps)))
			return message_set(INDEX_E_CORRUPT, "index: hint %llu is out of order",
					   (unsigned long long)i);
		last = hint;
	}
	return 0;
}

static int check_all(struct check *check)
{
	int r = check_segments(check);

	for (uint64_t i = 0; r == 0 && i < check->index->n_tensors; i++)
		r = check_tensor(check, i);
	for (uint64_t i = 0; r == 0 && i < check->index->n_files; i++)
		r = check_file(check, i);
	if (!r)
		r = check_names(check);
	if (!r)
		r = check_hints(check->index);
	return r ? r : check_overlaps(check);
}

int index_check(const struct index *index)
{
	_cleanup_(cleanup_memory) uint64_t *owner =
		memory_array(index->n_forms + 1, sizeof(*owner));
	_cleanup_(cleanup_memory) struct name *names =
		memory_array(index->n_tensors + 1, sizeof(*names));
	_cleanup_(cleanup_memory) struct extent *extents =
		memory_array(index->n_forms + index->n_files + 1, sizeof(*extents));
	struct check check = {.index = index, .owner = owner, .names = names, .extents = extents};

	if (!owner || !names || !extents)
		return message_set(-ENOMEM, "no memory to check the index");
	if (getrandom(&check.seed, sizeof(check.seed), 0) != sizeof(check.seed))
		return message_set(-errno, "no random numbers");
	return check_all(&check);
}
