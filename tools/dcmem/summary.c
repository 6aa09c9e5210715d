/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups the tensors of a container: names that differ in numbers alone are one group, in the order
 * in which they first appear. Reads the index only. One thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "dcmem/dcmem.h"
#include "summary.h"
#include "table.h"

struct group {
	char *name;
	const char *codec; /* "mixed" where tensors differ */
	uint32_t dtype;
	uint64_t first; /* tensor */
	uint64_t n_tensors, n_bytes, stored_bytes;
};

struct groups {
	struct group *list;
	size_t n, capacity;
};

int summary_tensor(const struct index *index, const struct container_tensor *tensor,
		   uint64_t *ret_stored_bytes, const char **ret_codec)
{
	const struct container_form *form;
	const struct container_page *pages;
	uint64_t counts[256] = { 0 };
	unsigned most = 0;
	int r;

	*ret_stored_bytes = 0;
	*ret_codec = tensor->flags & CONTAINER_TENSOR_SHARED ? "shared" : "raw";
	if (tensor->n_bytes == 0 || (tensor->flags & CONTAINER_TENSOR_SHARED))
		return 0;
	r = index_form(index, tensor->first_form, &form);
	if (!r)
		r = index_pages(index, form->page_record, form->n_pages, &pages);
	if (r)
		return r;
	for (uint64_t i = 0; i < form->n_pages; i++)
		counts[pages[i].codec]++;
	for (unsigned i = 1; i < 256; i++)
		most = counts[i] > counts[most] ? i : most;
	*ret_stored_bytes = form->stored_bytes;
	*ret_codec = dcmem_codec_name(most);
	return 0;
}

/* "model.layers.12.mlp" becomes "model.layers.*.mlp". */
static char *group_name(const char *name)
{
	char *group = memory_alloc(strlen(name) + 1), *to = group;

	for (const char *c = name; group; c++) {
		size_t n = strspn(c, "0123456789");

		if (n && (c == name || c[-1] == '.') && (c[n] == '.' || c[n] == '\0')) {
			*to++ = '*';
			c += n;
		}
		*to++ = *c;
		if (*c == '\0')
			break;
	}
	return group;
}

struct keyed {
	char *name;
	uint64_t id;
	uint32_t dtype;
};

static int keyed_compare(const void *a, const void *b)
{
	const struct keyed *x = a, *y = b;
	int order = strcmp(x->name, y->name);

	if (order)
		return order;
	if (x->dtype != y->dtype)
		return x->dtype < y->dtype ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static int group_compare(const void *a, const void *b)
{
	const struct group *x = a, *y = b;

	return x->first < y->first ? -1 : x->first > y->first;
}

static int groups_add(struct groups *groups, const struct index *index, struct keyed *key)
{
	struct group *group = groups->n ? &groups->list[groups->n - 1] : NULL;
	const struct container_tensor *tensor;
	void *list = groups->list;
	const char *codec;
	uint64_t stored;
	int r = index_tensor(index, key->id, &tensor);

	if (!r)
		r = summary_tensor(index, tensor, &stored, &codec);
	if (r)
		return r;
	if (!group || strcmp(group->name, key->name) != 0 || group->dtype != key->dtype) {
		r = memory_grow(&list, &groups->capacity, groups->n, groups->n + 1,
				sizeof(*group));
		groups->list = list;
		if (r)
			return r;
		group = &groups->list[groups->n++];
		*group = (struct group){ .name = TAKE(key->name), .codec = codec,
					 .dtype = key->dtype, .first = key->id };
	}
	if (strcmp(group->codec, codec) != 0)
		group->codec = "mixed";
	group->n_tensors++;
	group->n_bytes += tensor->n_bytes;
	group->stored_bytes += stored;
	return 0;
}

static int groups_init(struct groups *groups, const struct index *index)
{
	struct keyed *keys = memory_array(index->n_tensors + 1, sizeof(*keys));
	int r = keys ? 0 : -ENOMEM;

	for (uint64_t id = 0; !r && id < index->n_tensors; id++) {
		const struct container_tensor *tensor;
		const char *name;

		r = index_tensor(index, id, &tensor);
		if (!r)
			r = index_tensor_name(index, tensor, &name);
		if (r)
			break;
		keys[id] = (struct keyed){ .name = group_name(name), .id = id,
					   .dtype = tensor->dtype };
		r = keys[id].name ? 0 : -ENOMEM;
	}
	if (!r)
		qsort(keys, index->n_tensors, sizeof(*keys), keyed_compare);
	for (uint64_t i = 0; !r && i < index->n_tensors; i++)
		r = groups_add(groups, index, &keys[i]);
	for (uint64_t i = 0; keys && i < index->n_tensors; i++)
		memory_free(keys[i].name);
	memory_free(keys);
	if (!r && groups->n)
		qsort(groups->list, groups->n, sizeof(groups->list[0]), group_compare);
	return r;
}

static void groups_deinit(struct groups *groups)
{
	for (size_t i = 0; i < groups->n; i++)
		memory_free(groups->list[i].name);
	groups->list = memory_free(groups->list);
	groups->n = 0;
}

int summary_totals(const struct container *container, struct summary_totals *ret_totals)
{
	const struct index *index = &container->index;
	struct summary_totals totals = { .n_tensors = index->n_tensors,
					 .n_files = index->n_files,
					 .container_bytes = container->header.file_bytes };

	for (uint64_t id = 0; id < index->n_tensors; id++) {
		const struct container_tensor *tensor;
		const char *codec;
		uint64_t stored;
		int r = index_tensor(index, id, &tensor);

		if (!r)
			r = summary_tensor(index, tensor, &stored, &codec);
		if (r)
			return r;
		totals.n_bytes += tensor->n_bytes;
		totals.stored_bytes += stored;
		totals.n_shared += (tensor->flags & CONTAINER_TENSOR_SHARED) != 0;
	}
	for (uint64_t i = 0; i < index->n_files; i++) {
		const struct container_file *file;
		int r = index_file(index, i, &file);

		if (r)
			return r;
		totals.file_bytes += file->file_bytes;
	}
	*ret_totals = totals;
	return 0;
}

static int table_group(struct table *table, const char *name, uint64_t n, const char *dtype,
		       uint64_t n_bytes, uint64_t stored, const char *codec)
{
	char count[24], raw_text[24], stored_text[24], ratio[24];

	snprintf(count, sizeof(count), "%llu", (unsigned long long)n);
	return table_row(table, (const char *[]){ name, count, dtype, table_bytes(n_bytes, raw_text),
						  table_bytes(stored, stored_text),
						  table_ratio(n_bytes, stored, ratio), codec });
}

int summary_print_groups(const struct container *container)
{
	struct groups groups = { 0 };
	struct summary_totals totals;
	struct table table;
	int r = groups_init(&groups, &container->index);

	table_init(&table, 7, "lrlrrrl");
	if (!r)
		r = summary_totals(container, &totals);
	if (!r)
		r = table_row(&table, (const char *[]){ "TENSORS", "COUNT", "DTYPE", "RAW", "STORED",
							"RATIO", "CODEC" });
	for (size_t i = 0; !r && i < groups.n; i++)
		r = table_group(&table, groups.list[i].name, groups.list[i].n_tensors,
				dtype_name(groups.list[i].dtype), groups.list[i].n_bytes,
				groups.list[i].stored_bytes, groups.list[i].codec);
	if (!r)
		r = table_group(&table, "total", totals.n_tensors, "", totals.n_bytes,
				totals.stored_bytes, "");
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	groups_deinit(&groups);
	return r < 0 ? message_set(r, "not enough memory for the table") : r;
}

int summary_json(const struct container *container, struct json_out *out)
{
	struct groups groups = { 0 };
	struct summary_totals totals;
	int r = groups_init(&groups, &container->index);

	if (!r)
		r = summary_totals(container, &totals);
	if (r) {
		groups_deinit(&groups);
		return r;
	}
	json_out_array(out, "groups");
	for (size_t i = 0; i < groups.n; i++) {
		json_out_object(out, NULL);
		json_out_string(out, "name", groups.list[i].name);
		json_out_u64(out, "n_tensors", groups.list[i].n_tensors);
		json_out_string(out, "dtype", dtype_name(groups.list[i].dtype));
		json_out_u64(out, "n_bytes", groups.list[i].n_bytes);
		json_out_u64(out, "stored_bytes", groups.list[i].stored_bytes);
		json_out_string(out, "codec", groups.list[i].codec);
		json_out_end(out, '}');
	}
	json_out_end(out, ']');
	json_out_object(out, "totals");
	json_out_u64(out, "n_tensors", totals.n_tensors);
	json_out_u64(out, "n_shared", totals.n_shared);
	json_out_u64(out, "n_bytes", totals.n_bytes);
	json_out_u64(out, "stored_bytes", totals.stored_bytes);
	json_out_double(out, "ratio", totals.stored_bytes ?
				(double)totals.n_bytes / (double)totals.stored_bytes : 1);
	json_out_u64(out, "n_files", totals.n_files);
	json_out_u64(out, "file_bytes", totals.file_bytes);
	json_out_u64(out, "container_bytes", totals.container_bytes);
	json_out_end(out, '}');
	groups_deinit(&groups);
	return 0;
}
