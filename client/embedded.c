/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model opened in this process. Owns the container. Segments are read, never mapped: another
 * process may truncate the file, and a mapping would then raise SIGBUS inside the program. Any
 * thread once opened.
 */
#include "client.h"

#include <string.h>

#include "base/range.h"

int embedded_open(struct dcmem *model, const char *path)
{
	int r = container_open(&model->container, path);

	if (r != 0)
		return r;
	model->index = model->container.index;
	memcpy(model->fingerprint, model->container.header.fingerprint, sizeof(model->fingerprint));
	return 0;
}

void embedded_close(struct dcmem *model)
{
	container_close(&model->container);
}

int embedded_form(struct dcmem *model, const struct client_tensor *tensor, uint64_t page,
		  struct client_form *ret_form)
{
	const struct container_form *best = NULL;
	const struct container_page *pages;
	int r;

	for (uint32_t i = 0; i < tensor->record->n_forms; i++) {
		const struct container_form *form;

		r = index_form(&model->index, tensor->record->first_form + i, &form);
		if (r != 0)
			return r;
		if (page >= form->first_page && page - form->first_page < form->n_pages &&
		    (!best || form->rank < best->rank))
			best = form;
	}
	if (!best)
		return message_set(DCMEM_E_CORRUPT, "no stored form holds page %llu of tensor %llu",
				   (unsigned long long)page, (unsigned long long)tensor->id);
	r = index_pages(&model->index, best->page_record, best->n_pages, &pages);
	if (r != 0)
		return r;
	*ret_form = (struct client_form){.pages = pages,
					 .first_page = best->first_page,
					 .n_pages = best->n_pages,
					 .segment = best->segment,
					 .raw = best->flags & CONTAINER_FORM_RAW,
					 .pages_from = best->offset,
					 .stored_bytes = best->stored_bytes};
	return 0;
}

int embedded_stored(struct dcmem *model, const struct client_form *form,
		    const struct container_page *page, struct client_scratch *scratch,
		    const void **ret_stored)
{
	int r;

	if (page->stored_bytes > scratch->stored_capacity) {
		uint8_t *bigger = memory_alloc(page->stored_bytes);

		if (!bigger)
			return -ENOMEM;
		memory_free(scratch->stored);
		scratch->stored = bigger;
		scratch->stored_capacity = page->stored_bytes;
	}
	r = container_read_segment(&model->container, form->segment, page->offset, scratch->stored,
				   page->stored_bytes);
	if (r == 0)
		*ret_stored = scratch->stored;
	return r;
}
