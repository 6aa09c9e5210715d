/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything about an index that getters leave out, checked once by whoever brings the bytes in:
 * loading, opening in-process, verify. Linear time, whatever the bytes.
 */
#include <string.h>

#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "model/index.h"

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
	uint64_t raw_at = form->offset;

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
		if (page->offset < form->offset ||
		    !range_fits(page->offset - form->offset, page->stored_bytes,
				form->stored_bytes))
			return damaged("page outside its form", name);
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

static int check_forms(const struct index *index, const struct container_tensor *tensor,
		       const char *name)
{
	struct index_shape shape;
	bool whole = tensor->n_bytes == 0;
	int r = index_shape(tensor, &shape);

	if (r)
		return r;
	for (uint64_t i = 0; i < tensor->n_forms; i++) {
		const struct container_form *form;

		r = index_form(index, tensor->first_form + i, &form);
		if (r)
			return r;
		if (!range_fits(form->first_page, form->n_pages, shape.n_pages))
			return damaged("form of pages that it does not have", name);
		if ((form->flags & CONTAINER_FORM_RAW) && form->offset % CONTAINER_SMALL_ALIGN)
			return damaged("raw form not aligned", name);
		if (i == 0 && form->first_page == 0 && form->n_pages == shape.n_pages)
			whole = true;
		r = check_form(index, tensor, form, name);
		if (r)
			return r;
	}
	return whole ? 0 : damaged("its first form does not cover it", name);
}

static int check_companions(const struct index *index, uint64_t id,
			    const struct container_tensor *tensor, const char *name)
{
	for (uint64_t i = 0; i < tensor->n_companions; i++) {
		const struct container_companion *companion;
		int r = index_companion(index, tensor->first_companion + i, &companion);

		if (r)
			return message_prefix(r, "'%.200s'", name);
		if (companion->tensor != id || companion->companion == id)
			return damaged("companion of another tensor", name);
	}
	return 0;
}

static int check_tensor(const struct index *index, uint64_t id)
{
	const struct container_tensor *tensor;
	const char *name;
	uint64_t found;
	int r = index_tensor(index, id, &tensor);

	if (!r)
		r = index_tensor_name(index, tensor, &name);
	if (r)
		return r;
	if (!utf8_is_valid(name, tensor->name_bytes))
		return damaged("name is not UTF-8", name);
	r = index_find(index, name, &found);
	if (r == INDEX_E_NOT_FOUND || (!r && found != id))
		return damaged("name twice, or not in the name table", name);
	if (!r)
		r = check_forms(index, tensor, name);
	if (!r)
		r = check_companions(index, id, tensor, name);
	return r;
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

static int check_file(const struct index *index, uint64_t i)
{
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
	return 0;
}

int index_check(const struct index *index)
{
	uint64_t end = sizeof(struct container_header);
	int r;

	for (uint64_t i = 0; i < index->n_segments; i++) {
		const struct container_segment *segment;

		r = index_segment(index, i, &segment);
		if (r)
			return r;
		/* In file order, so that none overlaps another. */
		if (segment->offset % CONTAINER_ALIGN || segment->n_bytes % CONTAINER_ALIGN ||
		    segment->offset < end || !range_add(segment->offset, segment->n_bytes, &end))
			return message_set(INDEX_E_CORRUPT, "index: segment %llu overlaps or wraps",
					   (unsigned long long)i);
	}
	for (uint64_t i = 0; i < index->n_tensors; i++) {
		r = check_tensor(index, i);
		if (r)
			return r;
	}
	for (uint64_t i = 0; i < index->n_files; i++) {
		r = check_file(index, i);
		if (r)
			return r;
	}
	return 0;
}
